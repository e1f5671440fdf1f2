"""The layout of hidden channels in a value, inferred from a graph without shapes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from ..graph import (
    TracedModel,
    argument,
    is_constant,
    is_shape,
    is_size,
    joins_rows,
    keeps_dim,
    new_shape,
    permutation,
    reduced_dims,
    subject,
)
from .nodes import class_name, op_name, tensor_inputs
from .operations import POINTWISE, POINTWISE_CLASSES, rule

REDUCTIONS = ("mean", "sum", "norm", "amax", "amin", "std", "var", "logsumexp")


UNCHANGED = (
    *POINTWISE,
    *("neg", "dropout", "drop_path", "contiguous", "clone", "float", "half", "to"),
)


"""Functions and methods that leave every value where it stands."""


ELEMENTWISE = (
    *("add", "iadd", "add_", "sub", "isub", "sub_", "mul", "imul", "mul_", "multiply", "div"),
    *(
        "truediv",
        "itruediv",
        "div_",
        "maximum",
        "minimum",
        "pow",
        "addcmul",
        "expand_as",
        "type_as",
    ),
)


"""Those that combine what stands at the same place, with broadcasting."""


AT_FRONT = (
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate"),
    *("dropout2d", "dropout3d"),
)


"""Those that work on positions, the channels standing in dimension 1."""


MOVING = (
    *("permute", "transpose", "swapaxes", "flatten", "view", "reshape", "getitem", "chunk"),
    *("split", "cat", "concat", "pad"),
)


"""Those that move channels or take some of them."""


UNCHANGED_CLASSES = (*POINTWISE_CLASSES, "Identity", "Dropout", "StochasticDepth", "DropPath")


AT_FRONT_CLASSES = (
    *("Dropout1d", "Dropout2d", "Dropout3d", "AvgPool1d", "AvgPool2d", "AvgPool3d"),
    *("AvgPool2dSame", "BlurPool2d", "MaxPool1d", "MaxPool2d", "MaxPool3d", "MaxPool2dSame"),
    *("AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "ReflectionPad1d"),
    *("AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "AdaptiveMaxPool3d", "ReflectionPad2d"),
    *("ZeroPad1d", "ZeroPad2d", "ZeroPad3d", "ReplicationPad2d", "Upsample"),
)


NORM_CLASSES = (
    *("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "FrozenBatchNorm2d"),
    *("BatchNormAct2d", "FrozenBatchNormAct2d", "SyncBatchNormAct"),
)


_KEEPING_CLASSES = {*UNCHANGED_CLASSES, *AT_FRONT_CLASSES, *NORM_CLASSES, "GroupNorm", "PReLU"}


_KEEPING = {*UNCHANGED, *ELEMENTWISE, *AT_FRONT, *MOVING, *REDUCTIONS}


@dataclass(frozen=True)
class Layout:
    """The layout of the hidden channels in a value.

    Attributes:
        dim: the dimension they stand in, counted from the front or, if negative, from the back.
        count: how many there are.
        segments: into how many equal runs they fall, each of which is shared out by itself.
        sure: whether the dimension is known to hold `count`, rather than one to be broadcast.
    """

    dim: int
    count: int
    segments: int = 1
    sure: bool = True


def input_layout(traced: TracedModel, node: fx.Node) -> Layout | None:
    """Return how a dense operation's input holds the channels that it mixes."""
    module = traced.module(node)
    if isinstance(module, nn.Linear):
        return Layout(-1, module.in_features)
    return Layout(1, module.in_channels) if isinstance(module, _ConvNd) else None


def output_layout(traced: TracedModel, node: fx.Node) -> Layout | None:
    """Return how a dense operation's output holds the channels that it makes."""
    module = traced.module(node)
    if isinstance(module, nn.Linear):
        return Layout(-1, module.out_features)
    return Layout(1, module.out_channels) if isinstance(module, _ConvNd) else None


def agree(traced: TracedModel, node: fx.Node, a: Layout, b: Layout) -> bool:
    """Return whether two layouts of one value say the same."""
    alike = (a.count, a.segments) == (b.count, b.segments)
    # In a value of shape (B, C) dimension 1 is the last one.
    return alike and (a.dim == b.dim or (is_vector(traced, node) and {a.dim, b.dim} == {1, -1}))


def is_vector(traced: TracedModel, node: fx.Node) -> bool:
    """Return whether a value is known to have the shape (B, C)."""
    while True:
        name = op_name(node)
        if name in ("view", "reshape"):
            return len(new_shape(node)) == 2
        if joins_rows(node):
            return True
        if name in REDUCTIONS:
            return not keeps_dim(node) and set(reduced_dims(node) or ()) in ({2, 3}, {-1, -2})
        if name == "flatten" or class_name(traced.module(node)) == "Flatten":
            start = 1 if name != "flatten" else argument(node, 1, "start_dim")
            return start == 1 and len(tensor_inputs(node)) == 1
        keeps = node.op == "call_module" or name in _KEEPING
        inputs = [n for n in tensor_inputs(node) if not is_size(n) and not is_constant(n)]
        if not keeps or len(inputs) != 1 or isinstance(traced.module(node), _ConvNd):
            return False
        node = inputs[0]


def rank_of(traced: TracedModel, node: fx.Node) -> int | None:
    """Return how many dimensions a value has, where the operations before it tell."""
    for _ in range(100):
        module, name = traced.module(node), op_name(node)
        if isinstance(module, _ConvNd):
            return len(module.kernel_size) + 2
        digits = [int(c) for c in class_name(module) if c.isdigit()]
        if class_name(module).startswith("BatchNorm") and digits[:1] in ([2], [3]):
            return digits[0] + 2
        if name == "permute":
            return len(permutation(node) or ()) or None
        if name in ("view", "reshape") and not any(is_shape(part) for part in new_shape(node)):
            return len(new_shape(node))
        if name == "flatten" and argument(node, 1, "start_dim") == 2:
            return 3 if argument(node, 2, "end_dim") in (None, -1) else None
        inputs = [n for n in tensor_inputs(node) if not is_size(n) and not is_constant(n)]
        keeps = node.op == "call_module" or name in (*UNCHANGED, *ELEMENTWISE, *AT_FRONT)
        if not inputs or not (keeps or name in ("transpose", "layer_norm", "pad")):
            return None
        node = inputs[0]
    return None


def is_pooled(traced: TracedModel, node: fx.Node) -> bool:
    """Return whether a value has one position per image, or comes from one by mixing channels."""
    while True:
        module = traced.module(node)
        if class_name(module).startswith(("AdaptiveAvgPool", "AdaptiveMaxPool")):
            size = getattr(module, "output_size", None)
            return size == 1 or (isinstance(size, tuple) and set(size) == {1})
        if op_name(node) in REDUCTIONS:
            # Over one dimension it may as well be the channels or a split's branches.
            dims = set(reduced_dims(node) or ())
            return len(dims) > 1 or (dims == {2} and op_name(node) == "mean")
        if op_name(node).startswith("adaptive_"):
            return argument(node, 1, "output_size") in (1, (1, 1), [1, 1], (1, 1, 1))
        if op_name(node) in ("view", "reshape") and new_shape(node)[-2:] == (1, 1):
            return True
        inputs = [n for n in tensor_inputs(node) if not is_size(n) and not is_constant(n)]
        keeps = node.op == "call_module" or op_name(node) in _KEEPING
        keeps = keeps or op_name(node) in ("layer_norm", "group_norm", "rms_norm")
        if len(inputs) != 1 or not keeps:
            return False
        node = inputs[0]


def is_broadcast(traced: TracedModel, node: fx.Node, dim: int) -> bool:
    """Return whether a value has size one in the channels' dimension."""
    while True:
        name = op_name(node)
        if name in REDUCTIONS and keeps_dim(node):
            dims = reduced_dims(node)
            return dims is not None and dim in dims
        if node.op == "call_module":
            layout = output_layout(traced, node)
            if layout is not None:
                return layout.count == 1 and layout.dim == dim
            if not rule(traced, node).pointwise:
                return False
        elif name not in (*UNCHANGED, *ELEMENTWISE) or any(
            value is None or value.numel() > 1
            for value in (constant_value(traced, n) for n in node.all_input_nodes if is_constant(n))
        ):
            return False
        inputs = [n for n in tensor_inputs(node) if not is_constant(n)]
        if len(inputs) != 1:
            return False
        node = inputs[0]


def channel_count(traced: TracedModel, node: fx.Node) -> int | None:
    """Return how many channels a value has, where the operations before it tell."""
    for _ in range(200):
        layout = output_layout(traced, node) if node.op == "call_module" else None
        if layout is not None:
            return layout.count
        module = traced.module(node)
        features = getattr(module, "num_features", None) or getattr(module, "num_channels", None)
        if type(features) is int:
            return features
        name = op_name(node)
        if name in ("cat", "concat"):
            given = subject(node)
            parts = given if isinstance(given, tuple | list) else ()
            counts = [channel_count(traced, p) if isinstance(p, fx.Node) else None for p in parts]
            return None if None in counts else sum(filter(None, counts))
        if name == "getitem" and isinstance(subject(node), fx.Node):
            return _piece_count(traced, node)
        module_keeps = module is not None and class_name(module) in _KEEPING_CLASSES
        if not (module_keeps or name in (*UNCHANGED, *AT_FRONT, *ELEMENTWISE)):
            return None
        inputs = [n for n in tensor_inputs(node) if not is_constant(n) and not is_size(n)]
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
    """Return where a value's channels stand, where `channel_count` knows how many there are."""
    while True:
        layout = output_layout(traced, node)
        if layout is not None:
            return layout.dim
        module = traced.module(node)
        if getattr(module, "num_features", None) or getattr(module, "num_channels", None):
            return 1
        given = subject(node)
        node = given[0] if isinstance(given, tuple | list) else tensor_inputs(node)[0]


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
    if len(node.all_input_nodes) != 1 or op_name(node) not in ("view", "reshape", "unsqueeze"):
        return None
    value = constant_value(traced, node.all_input_nodes[0])
    if value is None:
        return None
    shape = (argument(node, 1, "dim"),) if op_name(node) == "unsqueeze" else new_shape(node)
    if not all(type(size) is int for size in shape):
        return None
    return value.unsqueeze(*shape) if op_name(node) == "unsqueeze" else value.reshape(shape)
