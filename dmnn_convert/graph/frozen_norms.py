"""Users' norms whose statistics and scales are fixed tensors, as detectors have them.

Their classes are as many as the libraries that copy them. So it is not the class that tells, but
the four tensors, and what the forward makes of others in their place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .skeletons import running_copy

_TENSORS = ("weight", "bias", "running_mean", "running_var")


def is_frozen_norm(module: nn.Module) -> bool:
    """Return whether a module normalises each channel of maps by fixed tensors, whatever they are.

    Channel c of its output is ``s (x - running_mean) + bias``, where s depends on `weight` and
    `running_var` of c alone.
    """
    if set(module._buffers) != set(_TENSORS) or module._parameters or module._modules:
        return False
    shapes = {() if t is None else tuple(t.shape) for t in module._buffers.values()}
    if len(shapes) > 1 or len(shape := shapes.pop()) != 1 or not shape[0]:
        return False
    try:
        return all(_is_affine(module, shape[0], training) for training in (True, False))
    except Exception:  # whatever a forward raises on other tensors
        return False


def _is_affine(module: nn.Module, channels: int, training: bool) -> bool:
    generator = torch.Generator().manual_seed(0)
    few = min(channels, 8)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.5

    tensors = {name: drawn(few) for name in _TENSORS}
    x, one = drawn(2, few, 2, 3), torch.ones(1, few, 1, 1, dtype=torch.float64)
    none = torch.zeros(few, dtype=torch.float64)
    scale = _made(module, {**tensors, "bias": none, "running_mean": none}, one, training)
    mean, bias = (tensors[name].view(1, -1, 1, 1) for name in ("running_mean", "bias"))
    first = {name: value[:1] for name, value in tensors.items()}
    return torch.allclose(
        _made(module, tensors, x, training), scale * (x - mean) + bias
    ) and torch.allclose(
        _made(module, first, x[:, :1], training), scale[:, :1] * (x - mean)[:, :1] + bias[:, :1]
    )


def _made(module: nn.Module, tensors: dict[str, Tensor], x: Tensor, training: bool) -> Tensor:
    """Return what a module makes of maps with other tensors in place of its own."""
    copied: Any = running_copy(module, "meta")
    copied._buffers.update(tensors)
    copied.training = training
    with torch.no_grad():
        result: Tensor = copied.forward(x)
    return result
