"""Several narrow layers as one wide layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..channels import is_plain_conv, is_row_wise_conv
from ..graph import own_layer
from ..nn import is_watched, scale_and_shift
from .parts import has_tensors


class StayApart(Exception):
    """Layers that are not known to give the same results when computed together."""


def _check_mergeable(layers: Sequence[Any], *, by_rows: bool) -> None:
    """Check that the weights and biases of convolutions or linear layers say all that they do.

    Args:
        layers: of one class.
        by_rows: whether a weight may be computed first, each row from the same row.

    Raises:
        StayApart: for layers with hooks, children or other tensors, or a class that does more.
    """
    for layer in layers:
        made = by_rows and is_row_wise_conv(layer)
        if not (made or is_plain_conv(layer) or _is_plain_linear(layer)):
            raise StayApart
        names = {"weight", "bias", "gain"} if made else {"weight", "bias"}
        if is_watched(layer) or layer._modules or _tensors(layer).keys() - names:
            raise StayApart


def _is_plain_linear(layer: nn.Module) -> bool:
    own = own_layer(layer)
    known = type(layer).__module__ == nn.Linear.__module__ or (own is not None and own.plain)
    return isinstance(layer, nn.Linear) and known


def _like(layer: Any, tensors: dict[str, Tensor | None]) -> Any:
    """Return a copy of a layer with other tensors."""
    new = copy.deepcopy(layer)
    for name, tensor in tensors.items():
        if name in new._parameters:
            before = new._parameters[name]
            value = None if tensor is None else nn.Parameter(tensor, before.requires_grad)
            new._parameters[name] = value
        else:
            new._buffers[name] = tensor
    return new


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    own = {**layer._parameters, **layer._buffers}
    return {name: tensor.detach() for name, tensor in own.items() if tensor is not None}


def _resized(layer: Any, rows: int, columns: int, groups: int) -> Any:
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = rows, columns
    else:
        layer.out_channels, layer.in_channels, layer.groups = rows, columns, groups
    return layer


def rows(layer: Any) -> int:
    """Return the number of output channels of a convolution or linear layer."""
    return int(layer.weight.shape[0])


def stacked(layers: Sequence[Any], groups: int) -> nn.Module:
    """Return convolutions or linear layers side by side: their outputs are concatenated.

    Raises:
        StayApart: for layers that do more than their weight and bias say.
    """
    _check_mergeable(layers, by_rows=True)
    found = [_tensors(layer) for layer in layers]
    new = _like(layers[0], {n: torch.cat([f[n] for f in found]) for n in found[0]})
    columns = new.weight.shape[1] * groups
    return _resized(new, rows(new), columns, groups)  # type: ignore[no-any-return]


def summing_layer(layers: Sequence[Any]) -> nn.Module:
    """Return convolutions or linear layers as the one that reads all inputs: outputs are summed.

    Raises:
        StayApart: for layers that do more than their weight and bias say.
    """
    _check_mergeable(layers, by_rows=False)
    weight = torch.cat([layer.weight.detach() for layer in layers], 1)
    bias = None
    if layers[0].bias is not None:
        bias = torch.stack([layer.bias.detach() for layer in layers]).sum(0)
    new = _like(layers[0], {"weight": weight, "bias": bias})
    return _resized(new, rows(new), weight.shape[1], 1)  # type: ignore[no-any-return]


def norm_of_sum(norms: Sequence[Any], summing: Any, terms: Sequence[Any]) -> nn.Module:
    """Return the norms of the terms of a sum as one norm of the sum.

    Each term is rescaled in the summing layer, so that all of them have the scale of the one whose
    scale is largest.

    Args:
        norms: batch norms with running statistics, one for each term.
        summing: makes the sum; the result of `summing_layer`. Changed in place.
        terms: the layers that it was made of.

    Raises:
        StayApart: for other norms.
    """
    if not all(isinstance(norm, _BatchNorm) and norm.running_var is not None for norm in norms):
        raise StayApart
    scale = torch.stack([scale_and_shift(norm)[0] for norm in norms])
    largest = scale.abs().argmax(0, keepdim=True)
    reference = scale.gather(0, largest)
    ratio = torch.where(reference == 0, torch.ones_like(scale), scale / reference)
    _rescale(summing, terms, ratio)
    result: Any = copy.deepcopy(norms[0])
    with torch.no_grad():
        for name in ("weight", "running_var"):
            tensors = [getattr(norm, name) for norm in norms]
            if tensors[0] is not None:
                getattr(result, name).copy_(torch.stack(tensors).gather(0, largest)[0])
        means = torch.stack([norm.running_mean.double() for norm in norms])
        result.running_mean.copy_((means * ratio).sum(0))
        if result.bias is not None:
            result.bias.copy_(torch.stack([norm.bias.double() for norm in norms]).sum(0))
    return result  # type: ignore[no-any-return]


def _rescale(layer: Any, terms: Sequence[Any], ratio: Tensor) -> None:
    """Scale each term of a summing layer by its ratio, (terms, rows)."""
    if torch.equal(ratio, torch.ones_like(ratio)):
        return
    scaled = [
        own.double().unsqueeze(1) * x.weight.detach().double().flatten(1)
        for own, x in zip(ratio, terms, strict=True)
    ]
    shaped = [w.view_as(x.weight) for w, x in zip(scaled, terms, strict=True)]
    with torch.no_grad():
        layer.weight.copy_(torch.cat(shaped, 1))
        if layer.bias is not None:
            biases = torch.stack([x.bias.double() for x in terms])
            layer.bias.copy_((ratio * biases).sum(0))


def channel_wise(layers: Sequence[Any], counts: Sequence[int]) -> nn.Module:
    """Return layers with a tensor entry per channel as one.

    Args:
        layers: norms, slopes and the like.
        counts: how many channels each of them has.

    Raises:
        StayApart: for layers of unknown kinds.
    """
    # A norm's activation is a child of it.
    if any(has_tensors(child) for layer in layers for child in layer.children()):
        raise StayApart
    found = [_tensors(layer) for layer in layers]
    joined: dict[str, Tensor | None] = {}
    for name in found[0]:
        tensors = [own[name] for own in found]
        if all(t.dim() and len(t) == n for t, n in zip(tensors, counts, strict=True)):
            joined[name] = torch.cat(tensors)
        elif all(torch.equal(t, tensors[0]) for t in tensors):
            joined[name] = tensors[0].clone()
        else:
            raise StayApart
    new = _like(layers[0], joined)
    if isinstance(new, nn.GroupNorm):
        if len({n // layer.num_groups for n, layer in zip(counts, layers, strict=True)}) > 1:
            raise StayApart
        new.num_groups = sum(layer.num_groups for layer in layers)
    for name in ("num_features", "num_parameters", "num_channels", "channels"):
        for_all = counts[0] == 1 and name != "num_features"  # one parameter of a PReLU, say
        if getattr(layers[0], name, None) == counts[0] and not for_all:
            setattr(new, name, sum(counts))
    return new  # type: ignore[no-any-return]
