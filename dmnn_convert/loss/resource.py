"""The resource loss: execution rates and FLOPs (eq. 11-15)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..distributed import place, summed
from ..errors import ArgumentError, GateMismatchError
from ..flops import FlopsTable
from ..nn import Paths


def check_target(target: float, call: str) -> None:
    """Check that a target is a share.

    Raises:
        ArgumentError: if it is outside (0, 1].
    """
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0 < target <= 1:
        raise ArgumentError(
            f"{call}(target={target!r}): the target is the share of gated FLOPs to keep, in (0, 1]."
        )


def execution_loss(rates: Tensor, target: float) -> Tensor:
    """Return Σ_l (target − z_l)² for execution rates z (L,) (eq. 12)."""
    return (target - rates).square().sum()


def resource_loss(paths: Paths, table: FlopsTable, target: float) -> Tensor:
    """Return the resource-constrained loss, execution rates plus FLOPs, a scalar (eq. 11-15).

    In a distributed run, rates and FLOPs are those of all processes' images together.

    Args:
        paths: the record of the batch by `record_paths`.
        table: the model's FLOPs table.
        target: the share r of the gated FLOPs to keep, in (0, 1]; the paper's e = r.

    Raises:
        ArgumentError: if the target is outside (0, 1].
        GateMismatchError: if paths and table belong to different models.
        RecordingError: if nothing was recorded.

    Example:
        >>> with record_paths(model.train()) as paths:
        ...     logits = model(images)
        >>> resource_loss(paths, table, target=0.5).backward()
    """
    check_target(target, "resource_loss")
    rates, flops_ratio = global_rates(paths, table)
    loss: Tensor = execution_loss(rates, target) + (flops_ratio - target).square()
    return loss


def global_rates(paths: Paths, table: FlopsTable) -> tuple[Tensor, Tensor]:
    """Return execution rates (L,) and the gated FLOPs ratio of all processes' images together.

    Raises:
        GateMismatchError: if paths and table belong to different models.
        RecordingError: if nothing was recorded.
    """
    if paths.sizes != table.sizes:
        raise GateMismatchError(
            f"resource_loss: the paths have blocks of {list(paths.sizes)} sub-blocks, the table "
            f"of {list(table.sizes)}: they belong to different models."
        )
    gates = paths.gates
    executed, flops = gates.sum(0), table.flops(gates).sum().to(gates.dtype)
    images = gates.new_tensor([float(len(gates))])
    sums = over_all_processes(torch.cat([executed, flops[None] / table.gated, images]))
    *_, images_everywhere = sums
    per_image = sums / images_everywhere.detach()
    rates = torch.stack([part.mean() for part in per_image[:-2].split(paths.sizes)])
    return rates, per_image[-2]


def over_all_processes(sums: Tensor) -> Tensor:
    """Add up over all processes, differentiably.

    Every process then has the whole batch's loss. The gradient of the sum arrives once for every
    process and DistributedDataParallel averages over them. The result is the gradient of a single
    process with the whole batch.
    """
    if place()[1] == 1:
        return sums
    total: Tensor = _SumOverProcesses.apply(sums)
    return total


class _SumOverProcesses(torch.autograd.Function):
    # PyTorch's own differentiable all_reduce is deprecated, and its replacement is private.

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        return summed(sums)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return summed(gradient)
