"""The place of the channels in a node's value."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from ..graph import (
    MOVING,
    Carries,
    Role,
    TracedModel,
    is_constant,
    keeps_dim,
    known,
    permutation,
    reduced_dims,
    spellings,
)
from .layout import channel_count, channel_dim, constant_value, parameter_behind
from .node_rules import rule
from .nodes import is_reduction, op_name, tensor_inputs
from .not_splittable import NotSplittable


def channel_place(traced: TracedModel, fork: fx.Node, region: Sequence[fx.Node]) -> tuple[int, int]:
    """Return the dimension of the fork's channels, and their number.

    Raises:
        NotSplittable: if the first layers do not show it.
    """
    last = {fork: -1}
    """Values that are the fork but for order -> which of its dimensions is their last one."""
    for node in region:
        read = [n for n in tensor_inputs(node) if n in last]
        if not read:
            continue
        found = _channels_read(traced, node)
        if found is not None:
            dim, count = found
            return (last[read[0]] if dim == -1 else dim), count
        order = permutation(node) if op_name(node) == "permute" else None
        if order is not None and read[0] is fork:
            last[node] = 1 if order[-1] == 1 else -1
        elif is_reduction(node) and not keeps_dim(node):
            if read[0] is fork and set(reduced_dims(node) or ()) in ({2, 3}, {2, 3, 4}, {-1, -2}):
                last[node] = 1
        elif node.target in traced.passing or _keeps_order(traced, node):
            last[node] = last[read[0]]
    made = channel_count(traced, fork)
    if made is None:
        raise NotSplittable("its first layers do not show how many channels its input has")
    return channel_dim(traced, fork), made


_NORMS_OF_MAPS = (
    *(*spellings("batch_norm"), *spellings("group_norm")),
    *(*spellings("fast_group_norm"), *spellings("instance_norm")),
)
"""Norms whose channels stand in dimension 1; the others normalise the last one."""


def _keeps_order(traced: TracedModel, node: fx.Node) -> bool:
    """Return whether a function or method leaves channels in the dimension they stand in."""
    return (
        rule(traced, node).role is Role.CHANNELWISE and known(op_name(node)).carries not in MOVING
    )


def _channels_of_scale(traced: TracedModel, node: fx.Node) -> tuple[int, int] | None:
    """Return the same for an operation whose tensor of the model has one value per channel."""
    for source in node.all_input_nodes:
        value = constant_value(traced, source) if is_constant(source) else None
        if value is not None and value.numel() > 1 and value.numel() == max(value.shape):
            behind = value.dim() - 1 - list(value.shape).index(value.numel())
            return (-1 if behind == 0 else 1), value.numel()
    return None


def _channels_read(traced: TracedModel, node: fx.Node) -> tuple[int, int] | None:
    """Return the dimension in which an operation expects its input's channels, and their number."""
    module = traced.module(node)
    if isinstance(module, _ConvNd):
        return 1, module.in_channels
    if isinstance(module, nn.Linear):
        return -1, module.in_features
    if isinstance(module, nn.LayerNorm):
        return (-1, module.normalized_shape[0]) if len(module.normalized_shape) == 1 else None
    features = getattr(module, "num_features", None) or getattr(module, "num_channels", None)
    if type(features) is int:
        return 1, features
    if known(op_name(node)).carries is Carries.ELEMENTWISE:
        return _channels_of_scale(traced, node)
    if op_name(node).endswith("norm"):
        constants = [parameter_behind(n) for n in node.all_input_nodes if is_constant(n)]
        sizes = {traced.attribute(n).numel() for n in constants}
        if len(sizes) == 1:
            return (1 if op_name(node) in _NORMS_OF_MAPS else -1), sizes.pop()
    return None
