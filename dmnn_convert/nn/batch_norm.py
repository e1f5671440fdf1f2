"""Batch norms: one for any number of dimensions, and their scale and shift in evaluation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class AnyBatchNorm(nn.BatchNorm2d):
    """A batch norm for any number of dimensions, as the functional one."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def scale_and_shift(norm: Any, eps: float | None = None) -> tuple[Tensor, Tensor]:
    """Return the scale and shift of a batch norm in evaluation, (C,) each, in float64.

    Args:
        norm: any module with the tensors of a batch norm; it may have no weight and no bias.
        eps: instead of the norm's own.
    """
    variance = norm.running_var.detach().double()
    scale = (variance + (norm.eps if eps is None else eps)).rsqrt()
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -norm.running_mean.detach().double() * scale
    return scale, shift if bias is None else shift + bias.detach().double()
