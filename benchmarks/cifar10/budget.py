"""CIFAR-10 networks trained for budgets: one for all levels, static ones for comparison.

    python benchmarks/cifar10/budget.py --data DIR --checkpoints DIR --list
    python benchmarks/cifar10/budget.py --data DIR --checkpoints DIR --only 'resnet20-*'

The DIR of --data holds train/<class>/ and test/<class>/, that of --checkpoints He et al.'s networks
as resnet20*.th and resnet56*.th. All networks start from these checkpoints and have the same recipe
and number of epochs: `levels` trains one network for a quarter, a half, three quarters and all of
its sub-blocks; `static-…` trains a plain slice of the checkpoint, the channels that the level has
at the start; `dense` the checkpoint itself; `gates` one with controllers, for half of the FLOPs.
`cascade-of-two` trains nothing: it takes the static networks and the dense one. A twentieth of the
training images is held out from all of them; cascades and gates are fitted to it. Each run is kept
in a folder of --runs, with its weights; a run that was stopped resumes where it stopped, and
finished rows are in docs/results-budget.csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import fnmatch
import sys
from pathlib import Path

from budget_policies import alone, of_one, of_two
from budget_runs import EPOCHS, RUNS, Run, epochs_of, folder_of, recipe_of
from cifar10 import ROOT, locked

from dmnn_convert import DmnnError
from dmnn_convert.files import write_all
from dmnn_convert.finetune import LAST, Interrupted, finetune

OUTPUT = ROOT / "docs" / "results-budget.csv"


@dataclasses.dataclass(frozen=True)
class Row:
    """What one policy of one training is worth.

    Attributes:
        policy: "dense", "static", "level", "cascade" (of one checkpoint), "cascade-of-two" (of
            networks trained apart) or "gates".
        levels: which share of the sub-blocks runs, by stage where they differ.
        target: the FLOPs ratio that was asked for; empty where the levels say it.
        flops_ratio: MACs of the whole network over the dense one's.
        top1: percent of the test images.
    """

    network: str
    policy: str
    levels: str
    target: float | str
    flops_ratio: float
    top1: float
    epochs: int
    seed: int
    command: str


def rows_of(run: Run, options: argparse.Namespace) -> list[Row]:
    """Train a network to its end, or take those that are trained, and return the rows."""
    if run.policy != "cascade-of-two":
        recipe = recipe_of(run, options)
        finetune(recipe, resume=(Path(recipe.output) / LAST).exists())
    epochs = epochs_of(run, options)
    command = f"python benchmarks/cifar10/{Path(__file__).name} --data DIR --checkpoints DIR"
    measured = {"levels": of_one, "gates": of_one, "cascade-of-two": of_two}.get(run.policy, alone)
    return [
        Row(
            network=run.network,
            policy=found.policy,
            levels=found.name,
            target="" if found.target is None else found.target,
            flops_ratio=round(found.flops_ratio, 4),
            top1=round(found.top1, 2),
            epochs=epochs,
            seed=run.seed,
            command=f"{command} --epochs {epochs} --only {run.name}",
        )
        for found in measured(run, options)
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
        kept.sort(
            key=lambda r: (
                *(r["network"], int(r["epochs"]), int(r["seed"]), r["policy"]),
                float(r["flops_ratio"]),
            )
        )
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
