"""The importance of hidden channels, from the scale of their norm and their readers' weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from ..channels import Hidden, layer_of, rule, units_of, values_read
from ..graph import Role, TracedModel
from .program import as_module


def by_importance(
    traced: TracedModel, hidden: Hidden, consumers: Sequence[fx.Node]
) -> Tensor | None:
    """Return the units of hidden channels, the most important first, equals in order.

    None stands for the source's order: if scores are unknown, or if sub-blocks take slices of
    values that are computed whole, which are runs of neighbours.

    Args:
        traced: the model.
        hidden: its hidden channels.
        consumers: the layers that read them.
    """
    if hidden.entries:
        return None
    scores = unit_scores(traced, hidden, consumers)
    if scores is None or not scores.isfinite().all():
        return None
    return scores.argsort(descending=True, stable=True)


def unit_scores(traced: TracedModel, hidden: Hidden, consumers: Sequence[fx.Node]) -> Tensor | None:
    """Return the importance of each unit of the hidden channels, (units,); None if unknown.

    The importance of a channel is its size times the L2 norm of the weights that read it. Its size
    is the scale of the norm before its readers or, without one, the L2 norm of the weights that
    make it. The importance of a unit is the root of its channels' sum of squares.
    """
    units = units_of(traced, hidden)
    squares = torch.zeros(hidden.units, dtype=torch.float32)
    for consumer in consumers:
        layer, read = layer_of(traced, consumer), values_read(consumer)[0]
        if layer is None:
            return None
        size = _sizes(traced, hidden, units, read)
        score = size * _norms_read(layer)
        squares.index_add_(0, units[read], score.square())
    return squares.sqrt()


def _norms(weight: Tensor) -> Tensor:
    """Return the L2 norm of each row."""
    return weight.detach().float().cpu().flatten(1).square().sum(1).sqrt()


def _norms_read(layer: _ConvNd | nn.Linear) -> Tensor:
    """Return the L2 norm of the weights that read each channel, (in,)."""
    weight, groups = layer.weight.detach().float().cpu(), getattr(layer, "groups", 1)
    by_group = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    return by_group.flatten(2).square().sum(2).sqrt().flatten()


def _sizes(
    traced: TracedModel, hidden: Hidden, units: dict[fx.Node, Tensor], read: fx.Node
) -> Tensor:
    """Return the size of each channel of a value, (count,); ones if unknown."""
    same = [read]
    """Yield the value, and those before it that hold its channels at the same places."""
    for node in same:
        sources = hidden.sources.get(node, ())
        same += [s for s in sources if s not in same and torch.equal(units[s], units[read])]
    norms = [node for node in same if rule(traced, node).role is Role.NORM]
    makers = [layer for node in same if (layer := layer_of(traced, node))]
    if norms:
        scale = getattr(as_module(traced, norms[0]), "weight", None)
        if isinstance(scale, Tensor):
            return scale.detach().float().cpu().abs()
    elif makers:
        return _norms(makers[0].weight)
    return torch.ones(len(units[read]), dtype=torch.float32)
