"""The rules by which operations carry channels from their inputs to their output.

`carried(traced, node, layout)` answers, for an operation whose output holds the channels as
`layout` says: which inputs hold them, and how? None means that the operation mixes channels or is
unknown. The operation's row in `graph/operations.py` selects the rule below.
"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor, fx
from torch.nn.modules.conv import _ConvNd

from ..graph import (
    Carries,
    Role,
    TracedModel,
    argument,
    is_constant,
    is_size,
    joins_rows,
    keeps_dim,
    new_shape,
    reduced_dims,
)
from .carried import Carried, Carry
from .carry_shapes import (
    halved,
    joined,
    permuted,
    piece,
    pieces,
    rows_joined,
    rows_parted,
    transposed,
    viewed,
    widened,
)
from .layout import Layout, channel_count, constant_value, is_broadcast, is_vector
from .node_rules import rule
from .nodes import carries, class_name, conv_of, group_count, op_name, tensor_inputs
from .rank import rank_of
from .shuffle import shuffled


def carried(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    """Return where the channels of the node's output come from; None if it mixes them."""
    if (wider := widened(traced, node, layout)) is not None:
        return wider
    carry = _WAYS.get(carries(traced, node))
    if conv_of(traced, node) is not None:
        carry = _through_grouped_conv
    return None if carry is None else carry(traced, node, layout)


def _unchanged(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    inputs = [source for source in node.all_input_nodes if not is_size(source)]
    return Carried({inputs[0]: layout}) if len(inputs) == 1 else None


def _at_front(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    """For operations on positions, whose channels stand in dimension 1."""
    module = traced.module(node)
    name = class_name(module) if module is not None else op_name(node)
    found = re.search(r"([123])[dD]", name)
    spatial = found and int(found[1])
    source = tensor_inputs(node)[0]
    rank = rank_of(traced, source)
    if layout.dim != 1 or (spatial and rank and rank != spatial + 2):
        return None  # a pool of another rank takes channels for places
    return _unchanged(traced, node, layout)


def _has_slopes(traced: TracedModel, norm: fx.Node) -> bool:
    """Return whether the activation of a norm has one slope a channel."""
    activation = getattr(traced.module(norm), "act", None)
    return getattr(activation, "num_parameters", 1) > 1


def _through_norm(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    if rule(traced, node).role is not Role.NORM or _has_slopes(traced, node):
        return None
    source = values[0] if (values := tensor_inputs(node)) else node
    if layout.dim == -1 and (joins_rows(source) or is_vector(traced, source)):
        return Carried({source: layout})
    # A functional norm reads its tensors besides.
    return Carried({source: layout}) if layout.dim == 1 else None


def _through_grouped_conv(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    module = traced.module(node)
    if not isinstance(module, _ConvNd) or rule(traced, node).role is not Role.GROUPED:
        return None
    if layout.dim != 1 or layout.count != module.out_channels:
        return None
    if layout.segments > 1 and module.groups % layout.segments:
        return None
    before = replace(layout, count=module.in_channels, sure=True)
    return Carried({tensor_inputs(node)[0]: before}, units=module.groups // layout.segments)


def _through_groups(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    groups = group_count(traced, node) or 1
    if channel_count(traced, node) != layout.count:
        return None  # not known, where a functional norm has no weight
    if groups == 1 or layout.dim != 1 or layout.segments > 1 or _has_slopes(traced, node):
        return None
    return Carried({tensor_inputs(node)[0]: layout}, units=groups)


def _through_prelu(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    alone = getattr(traced.module(node), "num_parameters", 0) == 1
    return (_unchanged if alone else _at_front)(traced, node, layout)


def _elementwise(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    inputs: dict[fx.Node, Layout] = {}
    parameters: dict[fx.Node, None] = {}
    for source in node.all_input_nodes:
        if is_constant(source):
            value = constant_value(traced, source)
            if value is None:
                return None
            if value.numel() == 1:
                continue
            if not _stands_for_channels(traced, node, source, value, layout):
                return None
            parameters[source] = None
        elif is_size(source):
            return None  # a sub-block would measure its own share
        elif not is_broadcast(traced, source, layout.dim):
            inputs[source] = layout
    if len(inputs) > 1:
        inputs = {source: replace(layout, sure=False) for source in inputs}
    return Carried(inputs, tuple(parameters)) if inputs else None


def _stands_for_channels(
    traced: TracedModel, node: fx.Node, source: fx.Node, value: Tensor, layout: Layout
) -> bool:
    """Return whether a parameter that `node` reads has one entry per channel, and may be cut."""
    if layout.segments > 1:
        return False
    rank, dim = value.dim(), layout.dim
    if dim >= 0:
        # A map has four dimensions where nothing tells, so that (C, 1, 1) reads like (1, C, 1, 1).
        dim -= rank_of(traced, node) or dim + 3
    if not 0 <= dim + rank < rank or value.shape[dim] != layout.count:
        return False
    return _source_of(traced, source, layout.count) is not None


def _source_of(traced: TracedModel, node: fx.Node, count: int) -> fx.Node | None:
    """Return the parameter behind a constant if its one long dimension can simply be cut."""
    while node.op != "get_attr":
        if op_name(node) != "unsqueeze" and count in new_shape(node):
            return None
        node = node.all_input_nodes[0]
    value = traced.attribute(node)
    return node if isinstance(value, Tensor) and value.numel() == count else None


def _reduced(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    dims, source = reduced_dims(node), tensor_inputs(node)[0]
    if dims is None:
        return None
    rank = rank_of(traced, source)
    if layout.dim == 1 and rank:
        dims = tuple(d % rank for d in dims)
    places = {2, 3, 4} if layout.dim == 1 else {(3, 1), (4, 1), (4, 2)}
    kept = set(dims) <= places if layout.dim == 1 else all((rank, d) in places for d in dims)
    if keeps_dim(node):
        return Carried({source: layout}) if kept else None
    if set(dims) in ({2, 3}, {2, 3, 4}) and layout.dim in (1, -1):
        return Carried({source: replace(layout, dim=1)})
    if kept and layout.dim == -1:
        return Carried({source: layout})
    return None


def _padded(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    padding = argument(node, 1, "pad")
    rank = rank_of(traced, tensor_inputs(node)[0]) or 3
    short = isinstance(padding, tuple | list) and len(padding) <= 2 * (rank - 2)
    return _at_front(traced, node, layout) if short else None


_WAYS: dict[Carries, Carry] = {
    Carries.UNCHANGED: _unchanged,
    Carries.ELEMENTWISE: _elementwise,
    Carries.AT_FRONT: _at_front,
    Carries.NORM: _through_norm,
    Carries.GROUPS: _through_groups,
    Carries.SLOPES: _through_prelu,
    Carries.REDUCED: _reduced,
    Carries.PADDED: _padded,
    Carries.PERMUTED: permuted,
    Carries.TRANSPOSED: transposed,
    Carries.FLATTENED: rows_joined,
    Carries.UNFLATTENED: rows_parted,
    Carries.VIEWED: viewed,
    Carries.TAKEN: piece,
    Carries.PIECES: pieces,
    Carries.JOINED: joined,
    Carries.HALVED: halved,
    Carries.SHUFFLED: shuffled,
}
