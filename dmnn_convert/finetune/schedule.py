"""The schedule of a recipe's gates."""

from __future__ import annotations

from ..loss import GatePhase, GateSchedule
from .option_groups import GateOptions

__all__ = ["GatePhase", "gate_phase"]


def gate_phase(options: GateOptions, epoch: float, epochs: float) -> GatePhase:
    """Return the phase at a time of so many epochs, e.g. 2.5 in the middle of the third."""
    schedule = GateSchedule(
        options.target,
        epochs,
        options.start_rate if options.anneal_from is None else options.anneal_from,
        options.anneal,
        options.anneal_epochs,
        options.open_epochs,
        options.tau,
        options.tau_end,
    )
    return schedule.at(epoch)
