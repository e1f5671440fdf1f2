"""The step of dynamic training for other people's loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..loss import DMNNLoss, GateSchedule, LossParts
from ..nn import record_paths


class DynamicStep(NamedTuple):
    """The result of a training step.

    Attributes:
        loss: the total, a scalar with gradients.
        output: what the model returned.
        figures: loss parts, target, rate and FLOPs ratios, detached scalars.
    """

    loss: Tensor
    output: Any
    figures: dict[str, Tensor | float]


def dynamic_step(
    model: nn.Module,
    forward: Callable[[], Any],
    labels: Tensor,
    loss: DMNNLoss,
    schedule: GateSchedule | None,
    epoch: float,
) -> DynamicStep:
    """Run a forward pass by the schedule, and return its loss.

    Args:
        model: a converted model, or anything that contains one.
        forward: runs it.
        labels: as the loss takes them.
        loss: of output, labels and paths.
        schedule: of target and temperature; None leaves both unchanged.
        epoch: the time.
    """
    if schedule is None:
        return _step(model, forward, labels, loss)
    with schedule.step(model, loss, epoch) as phase:
        found = _step(model, forward, labels, loss)
    return found._replace(figures={**found.figures, "tau": phase.tau})


def _step(
    model: nn.Module, forward: Callable[[], Any], labels: Tensor, loss: DMNNLoss
) -> DynamicStep:
    with record_paths(model) as paths:
        output = forward()
    parts: LossParts = loss.parts(output, labels, paths)
    # Every controller has a gradient, if only of zero, so that DistributedDataParallel misses none.
    total = parts.total + sum(0.0 * part.sum() for part in paths.gate_logits)
    figures: dict[str, Tensor | float] = {
        f"{name}_loss": part.detach() for name, part in parts._asdict().items() if name != "total"
    }
    gates = paths.gates.detach()
    figures["target"], figures["rate"] = loss.target, gates.mean()
    table = loss.table
    figures["flops_ratio"] = (table.network_flops(gates).mean() / table.dense_total).float()
    return DynamicStep(total, output, figures)
