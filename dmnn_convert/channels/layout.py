"""The layout of hidden channels in a value, inferred from a graph without shapes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from ..graph import (
    CARRYING,
    KEEPING_CHANNELS,
    Carries,
    TracedModel,
    argument,
    gives_pair,
    is_constant,
    joins_rows,
    keeps_dim,
    new_shape,
    reduced_dims,
    subject,
)
from .node_rules import rule
from .nodes import (
    CONCATENATIONS,
    VIEWS,
    carries,
    class_name,
    computed_inputs,
    group_norm_arguments,
    is_reduction,
    op_name,
    tensor_inputs,
)
from .not_splittable import NotSplittable


@dataclass(frozen=True)
class Layout:
    """The layout of the hidden channels in a value.

    Attributes:
        dim: the dimension they stand in, counted from the front or, if negative, from the back.
        count: number of channels.
        segments: number of equal runs, each of which is shared out by itself.
        sure: whether the dimension is known to hold `count`, rather than one to be broadcast.
        by_group: whether the segments are what the groups of a convolution read.
    """

    dim: int
    count: int
    segments: int = 1
    sure: bool = True
    by_group: bool = False


def input_layout(traced: TracedModel, node: fx.Node) -> Layout | None:
    """Return the layout of the channels that a dense operation mixes, in its input."""
    module = traced.module(node)
    if isinstance(module, nn.Linear):
        return Layout(-1, module.in_features)
    if not isinstance(module, _ConvNd):
        return None
    return Layout(1, module.in_channels, module.groups, by_group=module.groups > 1)


def output_layout(traced: TracedModel, node: fx.Node) -> Layout | None:
    """Return the layout of the channels that a dense operation makes, in its output."""
    module = traced.module(node)
    if isinstance(module, nn.Linear):
        return Layout(-1, module.out_features)
    return Layout(1, module.out_channels) if isinstance(module, _ConvNd) else None


def agree(traced: TracedModel, node: fx.Node, a: Layout, b: Layout) -> bool:
    """Return whether two layouts of one value are equivalent."""
    alike = (a.count, a.segments) == (b.count, b.segments)
    # In a value of shape (B, C) dimension 1 is the last one.
    return alike and (a.dim == b.dim or (is_vector(traced, node) and {a.dim, b.dim} == {1, -1}))


def is_vector(traced: TracedModel, node: fx.Node) -> bool:
    """Return whether a value is known to have the shape (B, C)."""
    while True:
        if node.meta.get("vector"):
            return True
        name = op_name(node)
        if name in VIEWS:
            return len(new_shape(node)) == 2
        if joins_rows(node):
            return True
        if is_reduction(node):
            return not keeps_dim(node) and set(reduced_dims(node) or ()) in ({2, 3}, {-1, -2})
        if name == "flatten" or class_name(traced.module(node)) == "Flatten":
            start = 1 if name != "flatten" else argument(node, 1, "start_dim")
            return start == 1 and len(tensor_inputs(node)) == 1
        keeps = traced.module(node) is not None or carries(traced, node) in CARRYING
        inputs = computed_inputs(node)
        if not keeps or len(inputs) != 1 or isinstance(traced.module(node), _ConvNd):
            return False
        node = inputs[0]


def is_pooled(traced: TracedModel, node: fx.Node) -> bool:
    """Return whether a value has one position per image, or comes from one by mixing channels."""
    while True:
        module = traced.module(node)
        if class_name(module).startswith(("AdaptiveAvgPool", "AdaptiveMaxPool")):
            size = getattr(module, "output_size", None)
            return size == 1 or (isinstance(size, tuple) and set(size) == {1})
        if is_reduction(node):
            # Over one dimension it may as well be the channels or a split's branches.
            dims = set(reduced_dims(node) or ())
            return len(dims) > 1 or (dims == {2} and op_name(node) == "mean")
        if op_name(node).startswith("adaptive_"):
            return argument(node, 1, "output_size") in (1, (1, 1), [1, 1], (1, 1, 1))
        if op_name(node) in VIEWS and new_shape(node)[-2:] == (1, 1):
            return True
        inputs = computed_inputs(node)
        if len(inputs) > 1 and carries(traced, node) is Carries.ELEMENTWISE:  # x * x.sigmoid()
            return all(is_pooled(traced, source) for source in inputs)
        keeps = CARRYING | {Carries.SAME_SHAPE}
        if len(inputs) != 1 or not (
            traced.module(node) is not None or carries(traced, node) in keeps
        ):
            return False
        node = inputs[0]


def is_broadcast(traced: TracedModel, node: fx.Node, dim: int) -> bool:
    """Return whether a value has size one in the channels' dimension."""
    while True:
        if is_reduction(node) and keeps_dim(node):
            dims = reduced_dims(node)
            return dims is not None and dim in dims
        if traced.module(node) is not None:
            layout = output_layout(traced, node)
            if layout is not None:
                return layout.count == 1 and layout.dim == dim
            if not rule(traced, node).pointwise:
                return False
        elif not _is_part_of_pair(node):
            constants = [n for n in node.all_input_nodes if is_constant(n)]
            values = [constant_value(traced, n) for n in constants]
            if carries(traced, node) not in (Carries.UNCHANGED, Carries.ELEMENTWISE) or any(
                value is None or value.numel() > 1 for value in values
            ):
                return False
        inputs = [n for n in tensor_inputs(node) if not is_constant(n)]
        if len(inputs) != 1:
            return False
        node = inputs[0]


def _is_part_of_pair(node: fx.Node) -> bool:
    """Return whether a node is the values or the indices that max gives along a dimension."""
    source = subject(node) if op_name(node) in ("getitem", "getattr") else None
    return isinstance(source, fx.Node) and gives_pair(source)


def channel_count(traced: TracedModel, node: fx.Node) -> int | None:
    """Return the number of a value's channels, if the operations before it show it."""
    for _ in range(200):
        layout = output_layout(traced, node)
        if layout is not None:
            return layout.count
        module = traced.module(node)
        features = getattr(module, "num_features", None) or getattr(module, "num_channels", None)
        if type(features) is int:
            return features
        norm = group_norm_arguments(node)
        if norm is not None and norm["weight"] is not None:
            return len(traced.attribute(norm["weight"]))
        name = op_name(node)
        if name in CONCATENATIONS:
            given = subject(node)
            parts = given if isinstance(given, tuple | list) else ()
            counts = [channel_count(traced, p) if isinstance(p, fx.Node) else None for p in parts]
            return None if None in counts else sum(filter(None, counts))
        if name == "getitem" and isinstance(subject(node), fx.Node):
            return _piece_count(traced, node)
        if carries(traced, node) not in KEEPING_CHANNELS:
            return None
        inputs = computed_inputs(node)
        if not inputs:
            return None
        node = inputs[0]
    return None


def _piece_count(traced: TracedModel, node: fx.Node) -> int | None:
    source = subject(node)
    if not isinstance(source, fx.Node):
        return None
    if op_name(source) in ("chunk", "split") and isinstance(source.args[0], fx.Node):
        size = argument(source, 1, "chunks", "split_size", "split_size_or_sections")
        if op_name(source) == "split":
            return size if type(size) is int else None
        total = channel_count(traced, source.args[0])
        return total // size if total and type(size) is int and total % size == 0 else None
    return None


def channel_dim(traced: TracedModel, node: fx.Node) -> int:
    """Return the dimension of a value's channels, if `channel_count` knows their number.

    Raises:
        NotSplittable: if the operations before it do not show the dimension.
    """
    while True:
        layout = output_layout(traced, node)
        if layout is not None:
            return layout.dim
        module = traced.module(node)
        if getattr(module, "num_features", None) or getattr(module, "num_channels", None):
            return 1
        if group_norm_arguments(node) is not None:
            return 1
        given = subject(node)
        inputs = given if isinstance(given, tuple | list) else computed_inputs(node)
        if not inputs:
            raise NotSplittable("its first layers do not show where the channels of its input are")
        node = inputs[0]


def parameter_behind(constant: fx.Node) -> fx.Node:
    """Return the node that reads the tensor of the model of which a constant is a view."""
    while constant.op != "get_attr":
        constant = constant.all_input_nodes[0]
    return constant


def constant_value(traced: TracedModel, node: fx.Node) -> Tensor | None:
    """Return the tensor that a constant node stands for."""
    if node.op == "get_attr":
        value = traced.attribute(node)
        return value if isinstance(value, Tensor) else None
    if len(node.all_input_nodes) != 1 or op_name(node) not in (*VIEWS, "unsqueeze"):
        return None
    value = constant_value(traced, node.all_input_nodes[0])
    if value is None:
        return None
    shape = (argument(node, 1, "dim"),) if op_name(node) == "unsqueeze" else new_shape(node)
    if not all(type(size) is int for size in shape):
        return None
    return value.unsqueeze(*shape) if op_name(node) == "unsqueeze" else value.reshape(shape)
