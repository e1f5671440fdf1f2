"""Fine-tune pretrained CIFAR-10 networks, dense and dynamic, and compare them.

    python benchmarks/cifar10.py --data DIR --checkpoints DIR --list
    python benchmarks/cifar10.py --data DIR --checkpoints DIR --only 'dmnn-56-*'

The DIR of --data holds train/<class>/ and test/<class>/, that of --checkpoints He et al.'s networks
as resnet20*.th to resnet56*.th. Every row has the same recipe and number of epochs. A finished row
is appended to docs/results-cifar10.csv; a row that was stopped goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import fnmatch
import functools
import shlex
import sys
from pathlib import Path
from typing import Any

from dmnn_convert import dynamize, zoo
from dmnn_convert.evaluation import Evaluation
from dmnn_convert.finetune import Recipe, finetune
from dmnn_convert.finetune.assess import assess
from dmnn_convert.finetune.distributed import joined
from dmnn_convert.finetune.state import LAST

ROOT = Path(__file__).parents[1]
FACTORIES = ROOT / "examples" / "cifar_resnet.py"
OUTPUT = ROOT / "docs" / "results-cifar10.csv"
EPOCHS = 8

DENSE: dict[str, Any] = {"n": 0}
ROWS: dict[str, dict[str, Any]] = {
    **{f"dense-{depth}": {"depth": depth, **DENSE} for depth in (20, 32, 44, 56)},
    **{f"dmnn-56-r{r}": {"target": r} for r in (0.3, 0.5, 0.7)},
    "dmnn-56-r0.5-N4": {"n": 4},
    "dmnn-56-r0.5-N1": {"n": 1},
    "dmnn-56-r0.5-no-prev": {"chained": False},
    "dmnn-56-r0.5-no-cat": {"categories": None},
    "dmnn-56-r0.5-no-distill": {"distill": 0.0},
    **{
        f"{name}-seed{seed}": {**changes, "seed": seed}
        for name, changes in (
            ("dense-56", DENSE),
            ("dense-32", {"depth": 32, **DENSE}),
            ("dmnn-56-r0.5", {}),
        )
        for seed in (1, 2)
    },
}
"""What each row changes: the depth, and options of the recipe."""


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


def recipe_for(name: str, options: argparse.Namespace) -> tuple[int, Recipe]:
    """Return a row's depth and recipe."""
    changes = dict(ROWS[name])
    depth = changes.pop("depth", 56)
    found = sorted(options.checkpoints.glob(f"resnet{depth}*"))
    if not found:
        sys.exit(f"{options.checkpoints}: holds no resnet{depth}*; give --checkpoints DIR.")
    base = Recipe(
        arch=f"{FACTORIES}:resnet{depth}",
        checkpoint=str(found[0]),
        data=str(options.data),
        input_size=32,
        epochs=options.epochs,
        workers=options.workers,
        output=str(options.runs / name),
        distill=0.5,
        categories="clusters:4",
    )
    return depth, base.with_changes(changes)


@functools.cache
def dense_macs(depth: int) -> int:
    """Return the MACs of one image in a dense network of a depth."""
    source = zoo.build(f"{FACTORIES}:resnet{depth}")
    return dynamize(source, 2, input_size=(3, 32, 32)).table.dense_total


def run(name: str, options: argparse.Namespace) -> Row:
    """Train one row to its end and measure it."""
    depth, recipe = recipe_for(name, options)
    result = finetune(recipe, resume=(Path(recipe.output) / LAST).exists())
    found, share = result.evaluation, dense_macs(depth) / dense_macs(56)
    words = [f"python benchmarks/{Path(__file__).name}", "--data DIR --checkpoints DIR"]
    words += [f"--epochs {options.epochs}", f"--only {shlex.quote(name)}"]
    row = Row(
        name=name,
        model=f"resnet{depth}",
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


def finished(file: Path) -> list[dict[str, str]]:
    """Return the rows that the file holds."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def append(row: Row, file: Path) -> None:
    """Put a row into the file, in the place of an older one of that name."""
    rows = [r for r in finished(file) if r["name"] != row.name]
    rows.append({k: str(v) for k, v in dataclasses.asdict(row).items()})
    rows.sort(key=lambda r: list(ROWS).index(r["name"]))
    temporary = file.with_name(f".{file.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as lines:
        names = [entry.name for entry in dataclasses.fields(Row)]
        writer = csv.DictWriter(lines, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(file)


def main() -> None:
    """Run the rows that are not finished."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--only", default="*", help="rows by name or pattern")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--csv", type=Path, default=OUTPUT, help="where finished rows go")
    parser.add_argument("--again", action="store_true", help="also rows that are finished")
    parser.add_argument("--list", action="store_true", help="name the rows")
    options = parser.parse_args()
    names = [name for name in ROWS if fnmatch.fnmatch(name, options.only)]
    if options.list:
        print("\n".join(names))
        return
    if options.data is None or options.checkpoints is None:
        parser.error("give --data DIR and --checkpoints DIR")
    done = {row["name"] for row in finished(options.csv)}
    for name in names:
        if name in done and not options.again:
            continue
        row = run(name, options)
        append(row, options.csv)
        print(f"{name}: top-1 {row.top1} % at {row.network_flops_ratio} of ResNet-56", flush=True)


if __name__ == "__main__":
    main()
