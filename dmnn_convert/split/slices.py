"""Slices of modules: rows of the layers that make channels, columns of those that read them."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..channels import NotSplittable, is_row_wise_conv
from ..graph import made_weight, own_layer
from ..nn import recounted, resized, shell

Layer = _ConvNd | nn.Linear


def _shell(module: nn.Module) -> Any:
    """Copy a module without copying its tensors."""
    new = shell(module)
    for name, child in module._modules.items():
        new._modules[name] = copy.deepcopy(child)
    return new


def _kept(tensor: Tensor, value: Tensor) -> Tensor:
    value = value.detach()
    shared = value.data_ptr() == tensor.data_ptr()
    value = value.clone(memory_format=torch.contiguous_format) if shared else value.contiguous()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value, requires_grad=tensor.requires_grad)
    return value


def cut(tensor: Tensor, channels: Tensor, dim: int = 0) -> Tensor:
    """Return the kept channels of a parameter or buffer, as one of its own."""
    return _kept(tensor, tensor.index_select(dim, channels.to(tensor.device)))


def cut_longest(tensor: Tensor, channels: Tensor) -> Tensor:
    """Return the kept entries of a tensor that has one entry per channel, in any dimension."""
    longest = max(range(tensor.dim()), key=lambda dim: tensor.shape[dim])
    return cut(tensor, channels, longest)


def slice_rows(layer: Layer, rows: Tensor, groups: int = 1) -> Layer:
    """Keep the output channels `rows` of a layer.

    With `groups` > 1 the rows are so many whole groups, whose input channels follow from them, or
    equally many of each group.
    """
    new: Any = _shell(layer)
    for table, name, tensor in _tensors(new):
        table[name] = cut(tensor, rows)
    return resized(new, groups)  # type: ignore[no-any-return]


def slice_columns(layer: Layer, columns: Tensor) -> Layer:
    """Keep the input channels `columns` of a layer, with the whole bias; the same of every group.

    A weight-standardised convolution becomes a plain one with its standardised weights, because
    a filter's mean and variance are those of all its columns.
    """
    if is_row_wise_conv(layer):
        layer = _standardised(layer)
    new: Any = _shell(layer)
    groups = getattr(layer, "groups", 1)
    own = columns[: len(columns) // groups]
    for table, name, tensor in _tensors(new):
        table[name] = cut(tensor, own, 1) if name == "weight" else _kept(tensor, tensor)
    return resized(new, groups)  # type: ignore[no-any-return]


def _tensors(module: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Return a module's own tensors, each with the dict that holds it: fixed ones are buffers."""
    tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    return [(t, name, v) for t in tables for name, v in t.items() if v is not None]


def _standardised(conv: Any) -> _ConvNd:
    plain = _shell(conv)
    if own_layer(conv) is not None:
        weight = made_weight(conv)
        if weight is None:
            raise NotSplittable(f"{type(conv).__name__} does more than compute its weight")
        plain.__class__ = getattr(nn, f"Conv{conv.weight.dim() - 2}d")
    else:
        weight = _of_timm(conv)
        plain.__class__ = _same_padded() if getattr(conv, "same_pad", False) else nn.Conv2d
    plain._parameters.pop("gain", None)
    plain._parameters["weight"] = _kept(conv.weight, weight)
    return plain  # type: ignore[no-any-return]


def _of_timm(conv: Any) -> Tensor:
    gain = getattr(conv, "gain", None)
    return F.batch_norm(
        conv.weight.detach().reshape(1, conv.out_channels, -1),
        None,
        None,
        weight=None if gain is None else (gain.detach() * conv.scale).view(-1),
        training=True,
        momentum=0.0,
        eps=conv.eps,
    ).reshape_as(conv.weight)


def _same_padded() -> type[nn.Conv2d]:
    from timm.layers.conv2d_same import Conv2dSame

    return Conv2dSame


def slice_channels(module: nn.Module, channels: Tensor, count: int) -> nn.Module:
    """Keep `channels` of the `count` that a channel-wise module has tensors for."""
    new: nn.Module = _shell(module)
    for table, name, tensor in _tensors(new):
        by_channel = tensor.dim() > 0 and len(tensor) == count
        table[name] = cut(tensor, channels) if by_channel else _kept(tensor, tensor)
    return recounted(new, len(channels), count)  # type: ignore[no-any-return]


def without_activation(norm: nn.Module) -> None:
    """Reduce a norm with activation to the norm, in place."""
    for name in ("act", "drop"):
        if hasattr(norm, name):
            setattr(norm, name, nn.Identity())


def activation_of(norm: nn.Module) -> nn.Module:
    """Return the rest of a norm with activation: its dropout and activation."""
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    return nn.Sequential(*(part for part in parts if isinstance(part, nn.Module)))


def share_out(module: nn.Module, N: int) -> None:
    """Reduce the additive parts (bias, running mean) of a module to a 1/N share, in place.

    With the whole sum's variance and scale kept, N such modules add up to the original in
    evaluation: ``Σ γ (y_n − μ/N) / σ + β/N = γ (Σ y_n − μ) / σ + β``.
    """
    with torch.no_grad():
        for name in ("bias", "running_mean"):
            tensor = getattr(module, name, None)
            if tensor is not None:
                tensor.div_(N)
