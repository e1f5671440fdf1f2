"""The schedule of the gates' target and temperature over a training."""

from __future__ import annotations

import math
from typing import NamedTuple

from .recipe import Recipe


class GatePhase(NamedTuple):
    """The state of the gates' schedule at one step.

    Attributes:
        open: all gates are on, whatever the controllers say.
        target: share of the gated FLOPs to keep.
        tau: temperature of the Gumbel-softmax.
    """

    open: bool
    target: float
    tau: float


def gate_phase(recipe: Recipe, epoch: float) -> GatePhase:
    """Return the phase at a time in epochs, e.g. 2.5 in the middle of the third.

    All gates are on for `open_epochs`; the target then falls to r, and stays: from the execution
    rate that controllers start with, unless a recipe says otherwise, because a higher target would
    first drive the gates to a certainty of running, where their gradient dies. The temperature
    falls geometrically over all epochs.
    """
    after = epoch - recipe.open_epochs
    length = recipe.anneal_epochs
    if length is None:
        length = max(0.0, recipe.epochs - recipe.open_epochs) / 2
    done = 1.0 if recipe.anneal == "none" or length == 0 else min(max(after / length, 0.0), 1.0)
    if recipe.anneal == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    last = recipe.tau if recipe.tau_end is None else recipe.tau_end
    first = recipe.start_rate if recipe.anneal_from is None else recipe.anneal_from
    first = max(first, recipe.target)
    passed = min(epoch / recipe.epochs, 1.0)
    return GatePhase(
        open=after < 0,
        target=first + (recipe.target - first) * done,
        tau=recipe.tau * (last / recipe.tau) ** passed,
    )
