"""Fine-tune pretrained CIFAR-10 networks, dense and dynamic, and compare them.

    python benchmarks/cifar10/cifar10.py --data DIR --checkpoints DIR --list
    python benchmarks/cifar10/cifar10.py --data DIR --checkpoints DIR --only 'dmnn-56-*'
    python benchmarks/cifar10/cifar10_report.py

The DIR of --data holds train/<class>/ and test/<class>/, that of --checkpoints He et al.'s networks
as resnet20*.th to resnet56*.th. Every row has the same recipe and number of epochs, and learns from
the labels alone unless its name says otherwise. A finished row is appended to
docs/results-cifar10.csv; a row that was stopped resumes where it stopped. Several of these may run
side by side: each takes rows that no other is working on.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from runs import Rows, attempt, change_rows, do_all, finished, options_of
from slices import FACTORIES, checkpoint_of, dense_macs, sliced

from dmnn_convert.cli.assess import assess
from dmnn_convert.distributed import joined
from dmnn_convert.evaluation import Evaluation
from dmnn_convert.finetune import LAST, Recipe, finetune

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "docs" / "results-cifar10.csv"
EPOCHS = 3

DENSE: dict[str, Any] = {"n": 0}
STATIC: dict[str, Any] = {"n": 0, "factory": "resnet56_half"}
SCRATCH: dict[str, Any] = {"factory": "bottleneck29", "weights": "random"}
PAPER: dict[str, Any] = {
    "order": "source",
    "certainty": 0.0,
    "init_rate": 0.9,
    "spread": 0.0,
    "rates": "block",
    "resource": 1.0,
    "gate_lr": None,
    "anneal": "none",
}
EQUAL: dict[str, Any] = {"order": "source", "certainty": 0.0}
ADAPTED: dict[str, Any] = {"after": "dense-56"}
"""Converted from a row's fine-tuned network: to be compared with rows of as many epochs in all."""
ROWS: dict[str, dict[str, Any]] = {
    **{f"dense-{depth}": {"factory": f"resnet{depth}", **DENSE} for depth in (56, 44, 32, 20)},
    "static-56-half": STATIC,
    **{f"dmnn-56-r{r}": {"target": r} for r in (0.7, 0.5, 0.3)},
    "dmnn-56-r0.5-N1": {"n": 1},
    **{f"dmnn-56-r{r}-N4": {"target": r, "n": 4} for r in (0.7, 0.5)},
    "dmnn-56-r0.5-equal": EQUAL,
    "dmnn-56-r0.5-equal-distill": {**EQUAL, "distill": 0.5},
    "dmnn-56-r0.5-source-order": {"order": "source"},
    **{f"dmnn-56-r0.5-certainty{p}": {"certainty": p} for p in (0.9, 0.95)},
    "dmnn-56-r0.5-paper": PAPER,
    "dmnn-56-r0.5-no-prev": {"chained": False},
    "dmnn-56-r0.5-no-cat": {"categories": None},
    "dmnn-56-r0.5-distill": {"distill": 0.5},
    "dense-56-distill": {**DENSE, "distill": 0.5},
    **{f"dmnn-56-r{r}-adapted": {**ADAPTED, "target": r} for r in (0.7, 0.5)},
    **{
        f"dmnn-56-r{r}-adapted-distill": {**ADAPTED, "target": r, "distill": 0.5}
        for r in (0.7, 0.5)
    },
    **{
        f"{name}-seed{seed}": {**changes, "seed": seed}
        for seed in (1, 2)
        for name, changes in (
            ("dense-56", DENSE),
            ("dense-32", {"factory": "resnet32", **DENSE}),
            ("dmnn-56-r0.5", {}),
        )
    },
    "scratch-29-dense": {**SCRATCH, **DENSE},
    "scratch-29-r0.5-matched": {**SCRATCH, "split": "matched"},
    "scratch-29-r0.5-exact": {**SCRATCH, "split": "exact"},
}
"""What each row changes: the network, and options of the recipe."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A finished run.

    Attributes:
        network_flops_ratio: MACs over those of the dense ResNet-56.
        gated_flops_ratio: gated MACs over those with all gates on; empty for dense networks.
        spread: standard deviation of network_flops_ratio over the test images.
        paths: number of distinct paths that the test images took.
        path_entropy: of these, in bits.
        information: bits that path and class share beyond chance.
        frozen_top1: with the gates frozen to the most frequent path.
    """

    name: str
    model: str
    N: int
    split: str
    target: float
    seed: int
    epochs: int
    top1: float
    network_flops_ratio: float
    gated_flops_ratio: float | str
    minutes: float
    command: str
    spread: float | str = ""
    paths: int | str = ""
    path_entropy: float | str = ""
    information: float | str = ""
    frozen_top1: float | str = ""


def recipe_for(name: str, options: argparse.Namespace) -> tuple[str, Recipe]:
    """Return a row's network, by its factory, and recipe."""
    changes = dict(ROWS[name])
    factory, after = changes.pop("factory", "resnet56"), changes.pop("after", None)
    base = Recipe(
        arch=f"{FACTORIES}:{factory}",
        data=str(options.data),
        input_size=32,
        epochs=options.epochs,
        workers=options.workers,
        amp="bf16",
        channels_last=True,
        distill=0.0,
        categories="clusters:4",
        output=str(folder_of(name, options)),
    ).with_changes(changes)
    if base.weights == "random":
        return factory, base.with_changes({"categories": None})
    if after is not None:
        weights = fine_tuned(after, options)
    else:
        checkpoint = checkpoint_of(factory.removesuffix("_half"), options)
        half = factory == "resnet56_half"
        weights = sliced("resnet56", factory, 0.5, checkpoint, options.runs) if half else checkpoint
    return factory, base.with_changes({"checkpoint": str(weights)})


def folder_of(name: str, options: argparse.Namespace) -> Path:
    """Return where a row's run is kept."""
    return Path(options.runs) / f"{name}-{options.epochs}-epochs"


def fine_tuned(name: str, options: argparse.Namespace) -> Path:
    """Return the weights that a row of dense networks ended with."""
    file = folder_of(name, options) / "final" / "model.safetensors"
    if not file.exists():
        sys.exit(f"{file}: is not there; run --only {name} first, with the same --runs.")
    return file


def run(name: str, options: argparse.Namespace) -> Row:
    """Train one row to its end and measure it."""
    factory, recipe = recipe_for(name, options)
    result = finetune(recipe, resume=(Path(recipe.output) / LAST).exists())
    found, share = result.evaluation, dense_macs(factory) / dense_macs("resnet56")
    words = [f"python benchmarks/cifar10/{Path(__file__).name}", "--data DIR --checkpoints DIR"]
    words += [f"--epochs {options.epochs}", f"--only {shlex.quote(name)}"]
    row = Row(
        name=name,
        model=factory,
        N=recipe.n,
        split="" if recipe.dense else recipe.split,
        target=1.0 if recipe.dense else recipe.target,
        seed=recipe.seed,
        epochs=recipe.epochs,
        top1=round(found.top1, 2),
        network_flops_ratio=round(share, 4),
        gated_flops_ratio="",
        minutes=round(result.minutes, 1),
        command=" ".join(words),
    )
    if not isinstance(found, Evaluation):
        return row
    with joined(recipe.device) as processes:
        folder = Path(recipe.output) / "final"
        frozen = assess(recipe, folder, processes, dense=False, frozen=True).frozen
    return dataclasses.replace(
        row,
        network_flops_ratio=round(share * found.network_flops_ratio.mean, 4),
        gated_flops_ratio=round(found.flops_ratio.mean, 4),
        spread=round(found.network_flops_ratio.std, 4),
        paths=found.distinct_paths,
        path_entropy=round(found.path_entropy, 2),
        information=round(found.mutual_information - found.chance_information, 2),
        frozen_top1="" if frozen is None else round(frozen.top1, 2),
    )


def append(row: Row, file: Path) -> None:
    """Put a row into the file, in the place of an older one of that name and as many epochs."""
    this, places = (row.name, str(row.epochs)), {name: place for place, name in enumerate(ROWS)}

    def changed(before: Rows) -> Rows:
        rows = [r for r in before if (r["name"], r["epochs"]) != this]
        rows.append({k: str(v) for k, v in dataclasses.asdict(row).items()})
        return sorted(rows, key=lambda r: (int(r["epochs"]), places.get(r["name"], len(places))))

    change_rows(file, Row, changed)


def is_finished(name: str, options: argparse.Namespace) -> bool:
    """Return whether the file holds a row of this name with as many epochs."""
    rows = finished(options.csv)
    return any(r["name"] == name and r["epochs"] == str(options.epochs) for r in rows)


def finish(name: str, options: argparse.Namespace) -> bool:
    """Run a row that is not finished, unless another process does; return whether that failed."""
    folder = folder_of(name, options)

    def work() -> list[str]:
        if options.again:
            shutil.rmtree(folder, ignore_errors=True)
        elif is_finished(name, options):
            return []
        row = run(name, options)
        append(row, options.csv)
        return [f"top-1 {row.top1} % at {row.network_flops_ratio} of ResNet-56"]

    return attempt(name, folder, work)


def main() -> None:
    """Run the rows that are not finished."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--again",
        action="store_true",
        help="anew, also rows that are finished, e.g. by another recipe",
    )
    options, names = options_of(parser, ROWS, OUTPUT)
    do_all(names, lambda name: finish(name, options))


if __name__ == "__main__":
    main()
