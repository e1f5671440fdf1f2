"""CIFAR-10 networks trained for budgets: one for all levels, static ones for comparison.

    python benchmarks/cifar10/budget.py --data DIR --checkpoints DIR --list
    python benchmarks/cifar10/budget.py --data DIR --checkpoints DIR --only 'resnet20-*'

The DIR of --data holds train/<class>/ and test/<class>/, that of --checkpoints He et al.'s networks
as resnet20*.th and resnet56*.th. All networks start from these checkpoints and have the same recipe
and number of epochs: `levels` trains one network for a quarter, a half, three quarters and all of
its sub-blocks; `static-…` trains a plain slice of the checkpoint, the channels that the level has
at the start; `dense` the checkpoint itself. A twentieth of the training images is held out from all
of them, for what is chosen afterwards. Each row's run is kept in a folder of --runs, with its
weights; a row that was stopped resumes where it stopped, and finished rows are in
docs/results-budget.csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import fnmatch
import sys
from pathlib import Path

import torch
from cifar10 import FACTORIES, ROOT, checkpoint_of, locked

from dmnn_convert import DmnnError, FlopsTable, dynamize
from dmnn_convert.files import write_all
from dmnn_convert.finetune import LAST, Interrupted, Recipe, finetune
from dmnn_convert.io import load_source_checkpoint, zoo
from dmnn_convert.io.checkpoint import TABLE

OUTPUT = ROOT / "docs" / "results-budget.csv"
LEVELS = (0.25, 0.5, 0.75, 1.0)
SLICES = {"quarter": 0.25, "half": 0.5, "three_quarters": 0.75}
"""Factories of narrower networks, by what follows the depth -> the share of channels."""
EPOCHS = {"resnet20": 30, "resnet56": 15}
SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Run:
    """A training: of which network, what it starts from, and under which seed.

    Attributes:
        network: "resnet20" or "resnet56".
        policy: "levels", "static" or "dense".
        part: which slice a static network is; empty for the others.
        seed: of the run.
    """

    network: str
    policy: str
    part: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """What --only calls it."""
        level = f"-{SLICES[self.part]:g}" if self.part else ""
        return f"{self.network}-{self.policy}{level}" + (f"-seed{self.seed}" if self.seed else "")

    @property
    def factory(self) -> str:
        """The factory of what is trained."""
        return f"{self.network}_{self.part}" if self.part else self.network


RUNS = {
    run.name: run
    for network in EPOCHS
    for seed in SEEDS
    for run in (
        Run(network, "levels", seed=seed),
        *(Run(network, "static", part, seed) for part in ("half", "quarter", "three_quarters")),
        Run(network, "dense", seed=seed),
    )
}


@dataclasses.dataclass(frozen=True)
class Row:
    """What one policy of one training is worth.

    Attributes:
        policy: "dense", "static" or "level".
        levels: which share of the sub-blocks runs.
        target: the FLOPs ratio that was asked for; empty where the levels say it.
        flops_ratio: MACs of the whole network over the dense one's.
        top1: percent of the test images.
    """

    network: str
    policy: str
    levels: str
    target: str
    flops_ratio: float
    top1: float
    epochs: int
    seed: int
    command: str


def recipe_of(run: Run, options: argparse.Namespace) -> Recipe:
    """Return the recipe of a training."""
    weights = sliced(run, options) if run.part else checkpoint_of(run.network, options)
    return Recipe(
        arch=f"{FACTORIES}:{run.factory}",
        checkpoint=str(weights),
        data=str(options.data),
        input_size=32,
        epochs=epochs_of(run, options),
        levels=LEVELS if run.policy == "levels" else (),
        n=None if run.policy == "levels" else 0,
        held_out=0.05,
        in_memory=True,
        workers=0,
        amp="bf16",
        channels_last=True,
        distill=0.0,
        seed=run.seed,
        output=str(folder_of(run, options)),
    )


def epochs_of(run: Run, options: argparse.Namespace) -> int:
    """Return for how long a run trains."""
    return int(options.epochs or EPOCHS[run.network])


def folder_of(run: Run, options: argparse.Namespace) -> Path:
    """Return where a run is kept."""
    return Path(options.runs) / f"{run.name}-{epochs_of(run, options)}-epochs"


def sliced(run: Run, options: argparse.Namespace) -> Path:
    """Write the weights of a narrower network: of each block's hidden channels, the larger ones.

    A channel counts by the size of its batch norm's scale times that of the weights that read it,
    as it does in the order of sub-blocks.
    """
    source = zoo.build(f"{FACTORIES}:{run.network}")
    load_source_checkpoint(source, checkpoint_of(run.network, options))
    weights = source.state_dict()
    for block in (name for name, m in source.named_modules() if hasattr(m, "conv2")):
        readers = weights[f"{block}.conv2.weight"]
        size = weights[f"{block}.bn1.weight"].abs() * readers.square().sum((0, 2, 3)).sqrt()
        kept = size.topk(int(len(size) * SLICES[run.part])).indices.sort().values
        weights[f"{block}.conv2.weight"] = readers[:, kept]
        for key in (f"{block}.conv1.weight", *(k for k in weights if k.startswith(f"{block}.bn1"))):
            if weights[key].dim():
                weights[key] = weights[key][kept]
    file: Path = options.runs / f"{run.factory}.pth"
    write_all(file.parent, {file.name: lambda path: torch.save(weights, path)})
    return file


def macs_of(factory: str) -> int:
    """Return the MACs of one image in a dense network."""
    source = zoo.build(f"{FACTORIES}:{factory}")
    return dynamize(source, 2, input_size=(3, 32, 32)).table.dense_total


def rows_of(run: Run, options: argparse.Namespace) -> list[Row]:
    """Train a network to its end and return its rows."""
    recipe = recipe_of(run, options)
    result = finetune(recipe, resume=(Path(recipe.output) / LAST).exists())
    words = f"python benchmarks/cifar10/{Path(__file__).name} --data DIR --checkpoints DIR"
    fixed = {
        "network": run.network,
        "target": "",
        "epochs": recipe.epochs,
        "seed": run.seed,
        "command": f"{words} --epochs {recipe.epochs} --only {run.name}",
    }
    if run.policy != "levels":
        share = macs_of(run.factory) / macs_of(run.network)
        level = f"{SLICES[run.part]:g}" if run.part else "1"
        figures = {"flops_ratio": round(share, 4), "top1": round(result.evaluation.top1, 2)}
        return [Row(policy=run.policy, levels=level, **figures, **fixed)]
    table = FlopsTable.from_json((Path(recipe.output) / "final" / TABLE).read_text())
    controllers = table.controllers / table.dense_total  # which a level does not need
    return [
        Row(
            policy="level",
            levels=f"{level:g}",
            flops_ratio=round(found.network_flops_ratio.mean - controllers, 4),
            top1=round(found.top1, 2),
            **fixed,
        )
        for level, found in result.levels.items()
    ]


def finished(file: Path) -> list[dict[str, str]]:
    """Return the rows that the file holds."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def append(rows: list[Row], file: Path) -> None:
    """Put rows into the file, in the place of those that the same command wrote."""
    with locked(file.with_name(f".{file.name}.lock")):
        kept = [r for r in finished(file) if r["command"] != rows[0].command]
        kept += [{k: str(v) for k, v in dataclasses.asdict(row).items()} for row in rows]
        kept.sort(key=lambda r: (r["network"], int(r["epochs"]), int(r["seed"]), r["policy"]))
        write_all(file.parent, {file.name: lambda path: write_rows(kept, path)})


def write_rows(rows: list[dict[str, str]], file: Path) -> None:
    """Write rows as CSV."""
    with file.open("w", newline="", encoding="utf-8") as lines:
        names = [entry.name for entry in dataclasses.fields(Row)]
        writer = csv.DictWriter(lines, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def finish(run: Run, options: argparse.Namespace) -> bool:
    """Do a run that is not finished, unless another process does; return whether that failed."""
    folder = folder_of(run, options)
    try:
        with locked(folder.with_name(f".{folder.name}.lock"), wait=False):
            rows = rows_of(run, options)
            append(rows, options.csv)
    except BlockingIOError:
        print(f"{run.name}: another process is at it", flush=True)
        return False
    except Interrupted:
        raise
    except DmnnError as error:
        print(f"{run.name}: {error}", file=sys.stderr, flush=True)
        return True
    for row in rows:
        print(f"{run.name}: {row.policy} {row.levels} top-1 {row.top1} % at {row.flops_ratio}")
    return False


def main() -> None:
    """Do the runs that are not finished."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--only", default="*", help="runs by name or pattern, with commas between")
    parser.add_argument("--epochs", type=int, help=f"epochs of every run  [{EPOCHS}]")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--csv", type=Path, default=OUTPUT, help="where finished rows go")
    parser.add_argument("--list", action="store_true", help="name the runs")
    options = parser.parse_args()
    patterns = options.only.split(",")
    names = [name for p in patterns for name in RUNS if fnmatch.fnmatch(name, p)]
    if not names:
        parser.error(f"--only {options.only}: no such run; --list names them")
    if options.list:
        print("\n".join(names))
        return
    if options.data is None or options.checkpoints is None:
        parser.error("give --data DIR and --checkpoints DIR")
    # A run that goes on compares its recipe, files included, with what it began with.
    options.data, options.checkpoints = options.data.resolve(), options.checkpoints.resolve()
    options.runs = options.runs.resolve()
    try:
        failed = [name for name in names if finish(RUNS[name], options)]
    except Interrupted as error:
        sys.exit(f"{error}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
