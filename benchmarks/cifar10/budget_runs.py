"""The trainings of the budget benchmark: what each starts from, and its recipe."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from slices import FACTORIES, checkpoint_of, sliced

from dmnn_convert.finetune import Recipe

LEVELS = (0.25, 0.5, 0.75, 1.0)
SLICES = {"quarter": 0.25, "half": 0.5, "three_quarters": 0.75}
"""Factories of narrower networks, by what follows the depth -> the share of channels."""
EPOCHS = {"resnet20": 30, "resnet56": 15}
SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Run:
    """A training, or a cascade of networks from several: of which network, and under which seed.

    Attributes:
        network: "resnet20" or "resnet56".
        policy: "levels", "static", "dense", "gates" or "cascade-of-two".
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
        level = f"-{self.level}" if self.part else ""
        return f"{self.network}-{self.policy}{level}" + (f"-seed{self.seed}" if self.seed else "")

    @property
    def level(self) -> str:
        """The share of the hidden channels that a plain network has."""
        return f"{SLICES[self.part]:g}" if self.part else "1"

    @property
    def factory(self) -> str:
        """The factory of what is trained."""
        return f"{self.network}_{self.part}" if self.part else self.network

    @property
    def apart(self) -> tuple[Run, ...]:
        """The trainings of plain networks under the same seed, from the cheapest to the dense."""
        slices = (Run(self.network, "static", part, self.seed) for part in SLICES)
        return (*slices, Run(self.network, "dense", seed=self.seed))

    @property
    def levels(self) -> Run:
        """The training for all levels under the same seed."""
        return Run(self.network, "levels", seed=self.seed)


RUNS = {
    run.name: run
    for network in EPOCHS
    for seed in SEEDS
    for run in (
        Run(network, "levels", seed=seed),
        *(Run(network, "static", part, seed) for part in ("half", "quarter", "three_quarters")),
        Run(network, "dense", seed=seed),
        Run(network, "gates", seed=seed),
        Run(network, "cascade-of-two", seed=seed),
    )
}


def recipe_of(run: Run, options: argparse.Namespace) -> Recipe:
    """Return the recipe of a training."""
    checkpoint = checkpoint_of(run.network, options)
    if run.part:
        checkpoint = sliced(run.network, run.factory, SLICES[run.part], checkpoint, options.runs)
    shapes = {
        "levels": {"levels": LEVELS, "n": None},
        "gates": {"target": 0.5, "categories": "clusters:4"},
    }
    return Recipe(
        arch=f"{FACTORIES}:{run.factory}",
        checkpoint=str(checkpoint),
        data=str(options.data),
        input_size=32,
        epochs=epochs_of(run, options),
        held_out=0.05,
        in_memory=True,
        workers=0,
        amp=options.amp,
        channels_last=True,
        distill=0.0,
        seed=run.seed,
        output=str(folder_of(run, options)),
    ).with_changes(shapes.get(run.policy, {"n": 0}))


def epochs_of(run: Run, options: argparse.Namespace) -> int:
    """Return for how long a run trains."""
    return int(options.epochs or EPOCHS[run.network])


def folder_of(run: Run, options: argparse.Namespace) -> Path:
    """Return where a run is kept."""
    return Path(options.runs) / f"{run.name}-{epochs_of(run, options)}-epochs"
