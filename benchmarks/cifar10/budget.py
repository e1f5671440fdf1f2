"""CIFAR-10 networks trained for budgets: one for all levels, static ones for comparison.

    python benchmarks/cifar10/budget.py --data DIR --checkpoints DIR --list
    python benchmarks/cifar10/budget.py --data DIR --checkpoints DIR --only 'resnet20-*'

The DIR of --data holds train/<class>/ and test/<class>/, that of --checkpoints He et al.'s networks
as resnet20*.th and resnet56*.th. All networks start from these checkpoints and have the same recipe
and number of epochs: `levels` trains one network for a quarter, a half, three quarters and all of
its sub-blocks; `static-…` trains a plain slice of the checkpoint, the channels that the level has
at the start; `dense` the checkpoint itself; `gates` one with controllers, for half of the FLOPs.
`cascade-of-two` trains nothing: it takes two networks of different trainings, the static ones, the
dense one or levels of the one trained for all of them. A twentieth of the training images is held
out from all of them; cascades and gates are fitted to it. Each run is kept in a folder of --runs,
with its weights; a run that was stopped resumes where it stopped, also on another machine
(unfinished.py), and finished rows are in docs/results-budget.csv.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from budget_policies import alone, of_one, of_two
from budget_runs import EPOCHS, RUNS, Run, epochs_of, folder_of, recipe_of
from cifar10 import ROOT
from runs import Rows, attempt, change_rows, do_all, options_of
from unfinished import take_up

from dmnn_convert.finetune import LAST, finetune

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
        take_up(recipe, run)
        finetune(recipe, resume=(Path(recipe.output) / LAST).exists())
    epochs = epochs_of(run, options)
    command = f"python benchmarks/cifar10/{Path(__file__).name} --data DIR --checkpoints DIR"
    command += f" --amp {options.amp}" if options.amp else ""
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


def append(rows: list[Row], file: Path) -> None:
    """Put rows into the file, in the place of those that the same command wrote."""

    def changed(before: Rows) -> Rows:
        kept = [r for r in before if r["command"] != rows[0].command]
        kept += [{k: str(v) for k, v in dataclasses.asdict(row).items()} for row in rows]
        return sorted(kept, key=_place)

    change_rows(file, Row, changed)


def _place(row: dict[str, str]) -> tuple[str, int, int, str, float]:
    order = row["network"], int(row["epochs"]), int(row["seed"]), row["policy"]
    return *order, float(row["flops_ratio"])


def finish(run: Run, options: argparse.Namespace) -> bool:
    """Do a run, unless another process does; return whether that failed."""

    def work() -> list[str]:
        rows = rows_of(run, options)
        append(rows, options.csv)
        return [
            f"{row.policy} {row.levels} top-1 {row.top1} % at {row.flops_ratio}" for row in rows
        ]

    return attempt(run.name, folder_of(run, options), work)


def main() -> None:
    """Do the runs that are not finished."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, help=f"epochs of every run  [{EPOCHS}]")
    parser.add_argument("--amp", choices=["bf16"], help="train in mixed precision")
    options, names = options_of(parser, RUNS, OUTPUT)
    options.runs = options.runs.resolve()
    do_all(names, lambda name: finish(RUNS[name], options))


if __name__ == "__main__":
    main()
