"""Trainings of the budget benchmark that stopped before their end, for another machine.

    python benchmarks/cifar10/unfinished.py --runs DIR

keeps the states of all such runs in benchmarks/cifar10/unfinished/; budget.py goes on from there
where its folder of --runs has none. A run's recipe says where its files lie; this is left out, and
said again by the other machine. Everything else of the recipe has to be the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from budget_runs import EPOCHS, RUNS, Run, folder_of

from dmnn_convert.files import write_all
from dmnn_convert.finetune import LAST, Recipe

UNFINISHED = Path(__file__).parent / "unfinished"
PLACES = ("arch", "checkpoint", "data", "output")
"""Options of a recipe that say where something lies."""


def keep(run: Run, options: argparse.Namespace, kept: Path = UNFINISHED) -> bool:
    """Keep a run's last state, without places of this machine; return whether it has one.

    A run that is finished is kept no longer.
    """
    folder, file = folder_of(run, options), kept / f"{run.name}.pt"
    if (folder / "final").exists():
        file.unlink(missing_ok=True)
        return False
    if not (folder / LAST).exists():
        return False
    state = torch.load(folder / LAST, map_location="cpu", weights_only=True)
    state["recipe"] = {k: v for k, v in state["recipe"].items() if k not in PLACES}
    write_all(kept, {file.name: lambda path: torch.save(state, path)})
    return True


def take_up(recipe: Recipe, run: Run, kept: Path = UNFINISHED) -> None:
    """Put the kept state of a run into its folder, unless there is one.

    A state of another recipe, of other epochs or another precision, is left alone.
    """
    folder, file = Path(recipe.output), kept / f"{run.name}.pt"
    if (folder / LAST).exists() or not file.exists():
        return
    state = torch.load(file, map_location="cpu", weights_only=True)
    state["recipe"] |= {name: recipe.to_dict()[name] for name in PLACES}
    if state["recipe"] != recipe.settled().to_dict():
        return
    write_all(folder, {LAST: lambda path: torch.save(state, path)})


def main() -> None:
    """Keep the states of the runs that are not finished."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--epochs", type=int, help=f"epochs of every run  [{EPOCHS}]")
    options = parser.parse_args()
    for run in RUNS.values():
        if keep(run, options):
            print(f"{run.name}: kept in {UNFINISHED}")


if __name__ == "__main__":
    main()
