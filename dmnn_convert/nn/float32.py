"""Small layers called in float32, whatever dtype the model has and whatever wraps them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .plain import is_plain


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Turn autocast off if the device has it; the meta device, used to measure costs, does not.

    torch.compile of older releases cannot trace the query, but all its devices have autocast.
    """
    has_it = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if has_it else nullcontext()


def called(layer: nn.Module, x: Tensor) -> Tensor:
    """Return a layer's output for x (B, C), float32.

    A pruned, quantised, adapted or hooked layer is called as it stands; where its tensors are of
    another dtype, float32 copies stand in for them.
    """
    if type(layer) is nn.Linear and layer.weight.dtype is torch.float32:
        return layer(x)  # type: ignore[no-any-return]
    if is_plain(layer, nn.Linear):
        bias = None if layer.bias is None else layer.bias.float()
        return F.linear(x, layer.weight.float(), bias)
    low = {
        name: tensor.float()
        for name, tensor in chain(layer.named_parameters(), layer.named_buffers())
        if tensor.is_floating_point() and tensor.dtype is not torch.float32
    }
    y = torch.func.functional_call(layer, low, (x,)) if low else layer(x)
    return y.float()  # type: ignore[no-any-return]


def bias_of(layer: nn.Module, inputs: int) -> Tensor:
    """Return the constant that a linear layer with a bias adds, (C,), float32."""
    if is_plain(layer, nn.Linear):
        return layer.bias.float()
    device = next((t.device for t in chain(layer.parameters(), layer.buffers())), None)
    return called(layer, torch.zeros(1, inputs, device=device))[0]
