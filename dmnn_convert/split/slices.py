"""Cut channels out of a module: rows of what makes them, columns of what reads them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def _shell(module: nn.Module) -> Any:
    """Copy a module without copying its tensors."""
    shell = type(module).__new__(type(module))
    shell.__dict__ = {
        key: copy.copy(value) if isinstance(value, dict | set) else value
        for key, value in module.__dict__.items()
    }
    for name, child in module._modules.items():
        shell._modules[name] = copy.deepcopy(child)
    return shell


def _kept(tensor: Tensor, value: Tensor) -> Tensor:
    value = value.detach()
    shared = value.data_ptr() == tensor.data_ptr()
    value = value.clone(memory_format=torch.contiguous_format) if shared else value.contiguous()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value, requires_grad=tensor.requires_grad)
    return value


def slice_conv(
    conv: _ConvNd, rows: Tensor | None, columns: Tensor | None, groups: int = 1
) -> _ConvNd:
    """Keep output channels `rows` and input channels `columns` (None: all) of a convolution.

    With `groups` > 1 the rows cover whole groups, and the input channels follow from them.
    """
    new: _ConvNd = _shell(conv)
    weight = conv.weight
    value = weight if rows is None else weight[rows]
    value = value if columns is None else value[:, columns]
    _replace(new, "weight", _kept(weight, value))
    if conv.bias is not None:
        bias = conv.bias if rows is None else conv.bias[rows]
        _replace(new, "bias", _kept(conv.bias, bias))
    new.groups, new.out_channels = groups, value.shape[0]
    new.in_channels = value.shape[1] * groups
    return new


def _replace(module: nn.Module, name: str, value: Any) -> None:
    """Set a tensor that is a parameter or, in layers of fixed weights, a buffer."""
    table: dict[str, Any] = module._buffers if name in module._buffers else module._parameters
    table[name] = value


def slice_channels(module: nn.Module, channels: Tensor | None, count: int) -> nn.Module:
    """Keep `channels` (None: all) of the `count` that a channel-wise module has tensors for."""
    new: nn.Module = _shell(module)
    tables: tuple[dict[str, Any], ...] = (new._parameters, new._buffers)
    for table in tables:
        for name, tensor in table.items():
            if tensor is not None:
                by_channel = tensor.dim() > 0 and len(tensor) == count and channels is not None
                table[name] = _kept(tensor, tensor[channels] if by_channel else tensor)
    if channels is not None:
        for name in ("num_features", "num_parameters"):
            if getattr(new, name, None) == count and count > 1:
                setattr(new, name, len(channels))
    return new


def share_out(module: nn.Module, N: int) -> None:
    """Leave a 1/N share of the additive parts (bias, running mean) of a module, in place.

    With the whole sum's variance and scale kept, N such modules add up to the original in
    evaluation: ``Σ γ (y_n − μ/N) / σ + β/N = γ (Σ y_n − μ) / σ + β``.
    """
    with torch.no_grad():
        for name in ("bias", "running_mean"):
            tensor = getattr(module, name, None)
            if tensor is not None:
                tensor.div_(N)
