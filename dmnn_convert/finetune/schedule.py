"""The schedule of the gates' target and temperature over a training."""

from __future__ import annotations

import math
from typing import NamedTuple

from .option_groups import GateOptions


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


def gate_phase(options: GateOptions, epoch: float, epochs: float) -> GatePhase:
    """Return the phase at a time of so many epochs, e.g. 2.5 in the middle of the third.

    All gates are on for `open_epochs`; the target then falls to r, and stays: from the execution
    rate that controllers start with, unless options say otherwise, because a higher target would
    first drive the gates to a certainty of running, where their gradient dies. The temperature
    falls geometrically over all epochs.
    """
    after = epoch - options.open_epochs
    length = options.anneal_epochs
    if length is None:
        length = max(0.0, epochs - options.open_epochs) / 2
    done = 1.0 if options.anneal == "none" or length == 0 else min(max(after / length, 0.0), 1.0)
    if options.anneal == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    last = options.tau if options.tau_end is None else options.tau_end
    first = options.start_rate if options.anneal_from is None else options.anneal_from
    first = max(first, options.target)
    passed = min(epoch / epochs, 1.0)
    return GatePhase(
        open=after < 0,
        target=first + (options.target - first) * done,
        tau=options.tau * (last / options.tau) ** passed,
    )
