"""Outputs of a model in evaluation, and how far two sets of them are apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConversionError
from ..graph import own_streams
from ..nn import MultiPathBlock, force_gates, tensors_in


def outputs_of(model: nn.Module, images: Tensor, seed: int, calls: int) -> list[Tensor]:
    """Return all tensors that a copy outputs in evaluation, with its gates on.

    Raises:
        ConversionError: if it returns no tensor.
    """
    model.eval()
    with undisturbed(model, images.device, seed), all_on(model):
        found = [tensor for _ in range(calls) for tensor in tensors_in(model(images.clone()))]
    if not found:
        raise ConversionError("it gives no tensor")
    return found


def all_on(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return a context in which all gates of a model are on, if it has any."""
    gated = any(isinstance(module, MultiPathBlock) for module in model.modules())
    return force_gates(model, True) if gated else contextlib.nullcontext()


@contextlib.contextmanager
def undisturbed(model: nn.Module, device: torch.device, seed: int = 0) -> Iterator[None]:
    """Let a model draw from streams of its own inside the block, without gradients and autocast."""
    with own_streams(model, seed), torch.no_grad(), _full_precision(device.type):
        yield


def _full_precision(device_type: str) -> contextlib.AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def deviation_of(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest deviation in any tensor, relative to its largest finite magnitude.

    If NaN or infinities are not where they are expected, or shapes differ, the deviation is
    infinite.
    """
    if [t.shape for t in got] != [t.shape for t in expected]:
        return float("inf")
    return max((_deviation(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)


def _deviation(got: Tensor, expected: Tensor) -> float:
    a, b = (torch.view_as_real(t) if t.is_complex() else t for t in (got, expected))
    a, b = a.double(), b.double()
    finite = b.isfinite()
    if not torch.equal(a.isfinite(), finite) or not torch.equal(
        a[~finite].nan_to_num(), b[~finite].nan_to_num()
    ):
        return float("inf")
    scale, error = (
        t.max().item() if t.numel() else 0.0 for t in (b[finite].abs(), (a - b)[finite].abs())
    )
    return error / scale if scale else error
