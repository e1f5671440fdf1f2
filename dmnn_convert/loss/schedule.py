"""The schedule of the gates' target and temperature over training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from ..errors import ArgumentError
from ..nn import controllers, force_gates
from .total import DMNNLoss

ANNEALS = ("none", "linear", "cosine")


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


@dataclass(frozen=True)
class GateSchedule:
    """The target and temperature of gates over the epochs of a training.

    All gates are on for `open_epochs`; the target then falls to r and stays. It should start at
    the execution rate that controllers start with (`GateConfig.init_rate`), because a higher target
    would first drive the gates to a certainty of running, where their gradient dies. The
    temperature falls geometrically over all epochs. Any other unit of time will do.

    Args:
        target: the share r of the gated FLOPs to keep, in (0, 1].
        epochs: length of the training.
        start: target at first; the target itself if that is higher.
        anneal: how it falls: "none", "linear" or "cosine".
        anneal_epochs: over how long; None for half of what `open_epochs` leave.
        open_epochs: how long all gates are on at the start.
        tau: temperature at the start.
        tau_end: temperature at the end; None for the same.

    Raises:
        ArgumentError: for values out of range, or gates that would never be trained.

    Example:
        >>> schedule = GateSchedule(target=0.5, epochs=20)
        >>> schedule.at(5.0).target
        0.7
    """

    target: float
    epochs: float
    start: float = 0.9
    anneal: str = "linear"
    anneal_epochs: float | None = None
    open_epochs: float = 0.0
    tau: float = 1.0
    tau_end: float | None = None

    def __post_init__(self) -> None:
        given = f"GateSchedule(target={self.target!r}, epochs={self.epochs!r}, ...)"
        if not (0 < self.target <= 1 and 0 < self.start <= 1):
            raise ArgumentError(f"{given}: target and start lie in (0, 1].")
        if self.anneal not in ANNEALS:
            raise ArgumentError(f"GateSchedule(anneal={self.anneal!r}): choose one of {ANNEALS}.")
        if not (self.tau > 0 and (self.tau_end is None or self.tau_end > 0)):
            raise ArgumentError(f"GateSchedule(tau={self.tau!r}, ...): temperatures are above 0.")
        if not 0 <= self.open_epochs < self.epochs:
            raise ArgumentError(
                f"GateSchedule(open_epochs={self.open_epochs!r}, epochs={self.epochs!r}): give "
                "epochs above 0, and fewer of them open, or the gates are never trained."
            )

    def at(self, epoch: float) -> GatePhase:
        """Return the phase at a time, e.g. 2.5 in the middle of the third epoch."""
        after = epoch - self.open_epochs
        length = self.anneal_epochs
        if length is None:
            length = max(0.0, self.epochs - self.open_epochs) / 2
        done = 1.0 if self.anneal == "none" or not length else min(max(after / length, 0.0), 1.0)
        if self.anneal == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        last = self.tau if self.tau_end is None else self.tau_end
        first = max(self.start, self.target)
        passed = min(epoch / self.epochs, 1.0)
        return GatePhase(
            open=after < 0,
            target=first + (self.target - first) * done,
            tau=self.tau * (last / self.tau) ** passed,
        )

    @contextmanager
    def step(self, model: nn.Module, loss: DMNNLoss, epoch: float) -> Iterator[GatePhase]:
        """Set the controllers' temperature and the loss's target, for a step inside the block.

        Args:
            model: a converted model, or anything that contains one.
            loss: the loss that the step minimises.
            epoch: the time.

        Example:
            >>> schedule, loss = GateSchedule(target=0.5, epochs=20), DMNNLoss(table, target=0.5)
            >>> with schedule.step(model, loss, 2.5), record_paths(model) as paths:
            ...     total = loss(model(images), labels, paths)
        """
        phase = self.at(epoch)
        for controller in controllers(model):
            controller.tau = phase.tau
        loss.target = phase.target
        if not phase.open:
            yield phase
            return
        with force_gates(model, True):
            yield phase
