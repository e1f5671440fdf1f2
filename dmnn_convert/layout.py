"""Where the hidden channels stand in a value, and how an operation carries them there.

`carried(traced, node, layout)` answers, for an operation whose output holds the channels as
`layout` says: which inputs hold them, and how? None means that the operation mixes channels, or
that no rule here knows it. To support a new operation, add one entry to a table here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from .dims import (
    argument,
    is_batch_size,
    is_size,
    keeps_dim,
    new_shape,
    permutation,
    reduced_dims,
    size_of,
)
from .ops import Role, class_name, is_plain_conv, is_row_wise_conv, op_name, rule, tensor_inputs
from .trace import Trace, is_constant


@dataclass(frozen=True)
class Layout:
    """How a value holds the hidden channels.

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


@dataclass(frozen=True)
class Carried:
    """Where an operation takes the channels of its output from.

    Attributes:
        inputs: values that hold them.
        parameters: tensors of the model with one entry a channel -> the dimension it stands in.
        whole: values that every channel reads alike.
        units: of how many parts, at most, the channels keep apart (groups).
    """

    inputs: dict[fx.Node, Layout]
    parameters: dict[fx.Node, int] = field(default_factory=dict)
    whole: frozenset[fx.Node] = frozenset()
    units: int = 0


Carry = Callable[[Trace, fx.Node, Layout], Carried | None]


def carried(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    """Return where the channels of the node's output come from; None if it mixes them."""
    if node.op == "call_module":
        carry = _module_carry(traced.module(node))
    else:
        carry = _BY_NAME.get(op_name(node))
        if node.target is F.batch_norm:
            carry = _through_norm
    return None if carry is None else carry(traced, node, layout)


def input_layout(traced: Trace, node: fx.Node) -> Layout | None:
    """Return how a dense operation's input holds the channels that it mixes."""
    module = traced.module(node)
    if isinstance(module, nn.Linear):
        return Layout(-1, module.in_features)
    return Layout(1, module.in_channels) if isinstance(module, _ConvNd) else None


def output_layout(traced: Trace, node: fx.Node) -> Layout | None:
    """Return how a dense operation's output holds the channels that it makes."""
    module = traced.module(node)
    if isinstance(module, nn.Linear):
        return Layout(-1, module.out_features)
    return Layout(1, module.out_channels) if isinstance(module, _ConvNd) else None


def agree(traced: Trace, node: fx.Node, a: Layout, b: Layout) -> bool:
    """Return whether two layouts of one value say the same."""
    alike = (a.count, a.segments) == (b.count, b.segments)
    # In a value of shape (B, C) dimension 1 is the last one.
    return alike and (a.dim == b.dim or (is_vector(traced, node) and {a.dim, b.dim} == {1, -1}))


def is_vector(traced: Trace, node: fx.Node) -> bool:
    """Return whether a value is known to have the shape (B, C)."""
    while True:
        name = op_name(node)
        if name in ("view", "reshape"):
            return len(new_shape(node)) == 2
        if name in REDUCTIONS:
            return not keeps_dim(node) and set(reduced_dims(node) or ()) in ({2, 3}, {-1, -2})
        if name == "flatten" or class_name(traced.module(node)) == "Flatten":
            start = 1 if name != "flatten" else argument(node, 1, "start_dim")
            return start == 1 and len(tensor_inputs(node)) == 1
        keeps = node.op == "call_module" or name in _BY_NAME
        inputs = [n for n in tensor_inputs(node) if not is_size(n) and not is_constant(n)]
        if not keeps or len(inputs) != 1 or isinstance(traced.module(node), _ConvNd):
            return False
        node = inputs[0]


# --- modules ------------------------------------------------------------------------------------


def _module_carry(module: nn.Module | None) -> Carry | None:
    if isinstance(module, _ConvNd):
        known = is_plain_conv(module) or is_row_wise_conv(module)
        return _through_groups if known and module.groups > 1 else None
    return _BY_CLASS.get(class_name(module))


def _unchanged(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    inputs = tensor_inputs(node)
    return Carried({inputs[0]: layout}) if len(inputs) == 1 else None


def _at_front(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    """For operations on positions, whose channels stand in dimension 1."""
    inputs = tensor_inputs(node)
    return Carried({inputs[0]: layout}) if layout.dim == 1 and len(inputs) == 1 else None


def _through_norm(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    if rule(traced, node).role is not Role.NORM:
        return None
    return _at_front(traced, node, layout)


def _through_groups(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    module = traced.module(node)
    if not isinstance(module, _ConvNd) or layout.dim != 1 or layout.count != module.out_channels:
        return None
    depthwise = module.groups == module.in_channels
    if layout.segments > 1 and not depthwise:
        return None
    before = Layout(1, module.in_channels, layout.segments)
    return Carried({tensor_inputs(node)[0]: before}, units=module.groups // layout.segments)


def _through_group_norm(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    groups = getattr(traced.module(node), "num_groups", 1)
    if groups == 1 or layout.dim != 1 or layout.segments > 1:
        return None
    return Carried({tensor_inputs(node)[0]: layout}, units=groups)


def _through_prelu(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    alone = getattr(traced.module(node), "num_parameters", 0) == 1
    return (_unchanged if alone else _at_front)(traced, node, layout)


def _through_flatten(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    module = traced.module(node)
    start = getattr(module, "start_dim", None) if module else argument(node, 1, "start_dim")
    end = getattr(module, "end_dim", None) if module else argument(node, 2, "end_dim")
    source = tensor_inputs(node)[0]
    if start == 1 and end in (None, -1) and is_pooled(traced, source) and layout.dim in (1, -1):
        return Carried({source: replace(layout, dim=1)})
    return Carried({source: layout}) if start == 2 and layout.dim == 1 else None


_BY_CLASS: dict[str, Carry] = {
    **dict.fromkeys(
        (
            *("Identity", "Dropout", "StochasticDepth", "DropPath", "ReLU", "ReLU6", "LeakyReLU"),
            *("SiLU", "GELU", "ELU", "CELU", "SELU", "Mish", "Tanh", "Hardswish", "Hardtanh"),
            *("QuickGELU", "GELUTanh", "Swish", "HardSwish", "HardMish", "Softsign", "Sigmoid"),
            *("HardswishMe", "SwishMe", "MishMe", "HardMishMe", "HardSigmoidMe"),
            *("Hardsigmoid", "Softplus", "HardSigmoid"),
        ),
        _unchanged,
    ),
    **dict.fromkeys(
        (
            *("Dropout1d", "Dropout2d", "Dropout3d", "AvgPool1d", "AvgPool2d", "AvgPool3d"),
            *("AvgPool2dSame", "MaxPool1d", "MaxPool2d", "MaxPool3d", "MaxPool2dSame"),
            *("AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "ReflectionPad1d"),
            *("AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "AdaptiveMaxPool3d", "ReflectionPad2d"),
            *("ZeroPad1d", "ZeroPad2d", "ZeroPad3d", "ReplicationPad2d", "Upsample"),
        ),
        _at_front,
    ),
    **dict.fromkeys(
        (
            *("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "FrozenBatchNorm2d"),
            *("BatchNormAct2d", "FrozenBatchNormAct2d", "SyncBatchNormAct"),
        ),
        _through_norm,
    ),
    "GroupNorm": _through_group_norm,
    "PReLU": _through_prelu,
    "Flatten": _through_flatten,
}


# --- functions and methods ------------------------------------------------------------------------


def _elementwise(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    inputs: dict[fx.Node, Layout] = {}
    parameters: dict[fx.Node, int] = {}
    whole: set[fx.Node] = set()
    for source in node.all_input_nodes:
        if is_constant(source):
            dim = _parameter_dim(traced, source, layout)
            if dim is None:
                return None
            if dim is _EVERY:
                whole.add(source)
            else:
                parameters[source] = dim
        elif is_size(source) or _is_broadcast(traced, source, layout.dim):
            whole.add(source)
        else:
            inputs[source] = layout
    if len(inputs) > 1:
        inputs = {source: replace(layout, sure=False) for source in inputs}
    return Carried(inputs, parameters, frozenset(whole)) if inputs else None


_EVERY = 1_000_000
"""Stands for the dimension of a parameter that is the same for every channel."""


def _parameter_dim(traced: Trace, node: fx.Node, layout: Layout) -> int | None:
    """Return in which dimension a parameter holds the channels; None if in a wrong one."""
    value = constant_value(traced, node)
    if value is None:
        return None
    if value.numel() == 1:
        return _EVERY
    if layout.segments > 1:
        return None
    rank = value.dim()
    if layout.dim < 0:
        dim = rank + layout.dim
    else:
        # (C, 1, 1) reads like (1, C, 1, 1); longer ones have a batch dimension of one.
        dim = layout.dim if value.shape[0] == 1 or layout.dim == 0 else layout.dim - 1
        if rank != dim + 3 and not (value.shape[0] == 1 and rank >= 3):
            return None
    if not 0 <= dim < rank or value.shape[dim] != layout.count:
        return None
    return dim if _source_of(traced, node, layout.count) is not None else None


def constant_value(traced: Trace, node: fx.Node) -> Tensor | None:
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


def _source_of(traced: Trace, node: fx.Node, count: int) -> fx.Node | None:
    """Return the parameter behind a constant if its one long dimension can simply be cut."""
    while node.op != "get_attr":
        if op_name(node) != "unsqueeze" and count in new_shape(node):
            return None
        node = node.all_input_nodes[0]
    value = traced.attribute(node)
    return node if isinstance(value, Tensor) and value.numel() == count else None


def _is_broadcast(traced: Trace, node: fx.Node, dim: int) -> bool:
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
        elif name not in _BY_NAME or _BY_NAME[name] not in (_unchanged, _elementwise):
            return False
        inputs = [n for n in tensor_inputs(node) if not is_constant(n)]
        if len(inputs) != 1:
            return False
        node = inputs[0]


REDUCTIONS = ("mean", "sum", "norm", "amax", "amin", "std", "var", "logsumexp")


def is_pooled(traced: Trace, node: fx.Node) -> bool:
    """Return whether a value has one position an image, or comes from one by mixing channels."""
    while True:
        module = traced.module(node)
        if class_name(module).startswith(("AdaptiveAvgPool", "AdaptiveMaxPool")):
            size = getattr(module, "output_size", None)
            return size == 1 or (isinstance(size, tuple) and set(size) == {1})
        if op_name(node) in REDUCTIONS:
            return True
        if op_name(node).startswith("adaptive_"):
            return argument(node, 1, "output_size") in (1, (1, 1), [1, 1], (1, 1, 1))
        if op_name(node) in ("view", "reshape") and new_shape(node)[-2:] == (1, 1):
            return True
        inputs = [n for n in tensor_inputs(node) if not is_size(n) and not is_constant(n)]
        keeps = node.op == "call_module" or op_name(node) in _BY_NAME
        if len(inputs) != 1 or not keeps:
            return False
        node = inputs[0]


def _permuted(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    order = permutation(node)
    if order is None:
        return None
    dim = order[layout.dim % len(order)]
    return Carried({tensor_inputs(node)[0]: replace(layout, dim=_canonical(dim, len(order)))})


def _canonical(dim: int, rank: int) -> int:
    # Convolutions look for dimension 1, linear layers for the last one.
    return -1 if dim == rank - 1 and dim != 1 else dim


def _transposed(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    dims = (argument(node, 1, "dim0", "axis0"), argument(node, 2, "dim1", "axis1"))
    if not all(type(d) is int for d in dims):
        return None
    # A tensor whose dimensions 1 and 2 change places has, as a rule, three: tokens.
    known = {1: -1, -1: 1, 2: 1} if set(dims) in ({1, 2}, {-1, -2}) else {}
    if layout.dim not in known:
        return None
    return Carried({tensor_inputs(node)[0]: replace(layout, dim=known[layout.dim])})


def _reduced(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    dims, source = reduced_dims(node), tensor_inputs(node)[0]
    if dims is None:
        return None
    if keeps_dim(node):
        return None if layout.dim in dims else Carried({source: layout})
    if set(dims) in ({2, 3}, {-1, -2}, {2}, {2, 3, 4}) and layout.dim in (1, -1):
        return Carried({source: replace(layout, dim=1)})
    if set(dims) in ({1}, {1, 2}) and layout.dim == -1:
        return Carried({source: layout})
    return None


def _viewed(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    """For view(batch, channels, ...) and view(batch, ..., channels): the order stays."""
    shape, source = new_shape(node), node.args[0]
    if not isinstance(source, fx.Node) or len(shape) < 2 or not is_batch_size(shape[0]):
        return None
    dim = layout.dim % len(shape) if layout.dim < 0 else layout.dim
    size = size_of(shape[dim]) if dim < len(shape) else None
    if size is None or size[1] is None or layout.segments > 1:
        return None
    read, where = size
    place = {1: 1, 2: -1, 3: -1, -1: -1}.get(where)  # type: ignore[arg-type]
    pooled = len(shape) == 2 and is_pooled(traced, source)
    if place is None or not (pooled or (dim == 1 and len(shape) > 2) == (place == 1)):
        return None
    sizes = frozenset(n for n in shape if isinstance(n, fx.Node))
    # The size that is read becomes a sub-block's own only if what it is read from is split too.
    inputs = {read: replace(layout, dim=place)}
    inputs[source] = replace(layout, dim=place)
    return Carried(inputs, whole=sizes)


def _piece(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    """For x.chunk(k)[i] and for slices that leave the channels whole."""
    source, index = node.args[0], node.args[1]
    if not isinstance(source, fx.Node):
        return None
    if op_name(source) in ("chunk", "split", "unbind"):
        return Carried({source: layout})
    index = index if isinstance(index, tuple) else (index,)
    if layout.dim != 1 or len(index) < 2 or Ellipsis in index or None in index[:2]:
        return None
    full = slice(None)
    if index[0] != full or not all(i is None or isinstance(i, slice) for i in index):
        return None
    count = channel_count(traced, source)
    cut = index[1]
    whole = cut == full or (
        isinstance(cut, slice) and cut.start in (None, 0) and cut.stop == count == layout.count
    )
    return Carried({source: layout}) if whole else None


def _pieces(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    """For chunk and split along the channels: each piece is a segment of the input."""
    source = node.args[0]
    dim = argument(node, 2, "dim")
    size = argument(node, 1, "chunks", "split_size", "split_size_or_sections")
    if not isinstance(source, fx.Node) or type(size) is not int or layout.segments > 1:
        return None
    if dim not in (1, -1) or (dim == 1) != (layout.dim == 1):
        return None
    if op_name(node) == "split" and size != layout.count:
        return None
    pieces = size
    if op_name(node) == "split":
        total = channel_count(traced, source)
        if total is None or total % size:
            return None
        pieces = total // size
    return Carried({source: replace(layout, count=layout.count * pieces, segments=pieces)})


def _joined(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    dim = argument(node, 1, "dim", "axis")
    if dim not in (1, -1) or (dim == 1) != (layout.dim == 1) or layout.segments > 1:
        return None
    given = node.args[0]
    parts = list(given) if isinstance(given, tuple | list) else []
    counts = [channel_count(traced, part) or 0 for part in parts if isinstance(part, fx.Node)]
    if len(set(parts)) != len(parts) or 0 in counts or sum(counts) != layout.count:
        return None
    return Carried(
        {part: replace(layout, count=count) for part, count in zip(parts, counts, strict=True)}
    )


def channel_count(traced: Trace, node: fx.Node) -> int | None:
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
            given = node.args[0]
            parts = given if isinstance(given, tuple | list) else ()
            counts = [channel_count(traced, p) if isinstance(p, fx.Node) else None for p in parts]
            return None if None in counts else sum(filter(None, counts))
        if name == "getitem" and isinstance(node.args[0], fx.Node):
            return _piece_count(traced, node)
        module_keeps = module is not None and class_name(module) in _BY_CLASS
        if not (module_keeps or _BY_NAME.get(name) in (_unchanged, _at_front, _elementwise)):
            return None
        inputs = [n for n in tensor_inputs(node) if not is_constant(n) and not is_size(n)]
        if not inputs:
            return None
        node = inputs[0]
    return None


def channel_dim(traced: Trace, node: fx.Node) -> int:
    """Return where a value's channels stand, where `channel_count` knows how many there are."""
    while True:
        layout = output_layout(traced, node)
        if layout is not None:
            return layout.dim
        module = traced.module(node)
        if getattr(module, "num_features", None) or getattr(module, "num_channels", None):
            return 1
        given = node.args[0]
        node = given[0] if isinstance(given, tuple | list) else tensor_inputs(node)[0]  # type: ignore


def _piece_count(traced: Trace, node: fx.Node) -> int | None:
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return None
    if op_name(source) in ("chunk", "split") and isinstance(source.args[0], fx.Node):
        size = argument(source, 1, "chunks", "split_size", "split_size_or_sections")
        if op_name(source) == "split":
            return size if type(size) is int else None
        total = channel_count(traced, source.args[0])
        return total // size if total and type(size) is int and total % size == 0 else None
    return None


def _padded(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    padding = argument(node, 1, "pad")
    short = isinstance(padding, tuple | list) and len(padding) <= 4
    return _at_front(traced, node, layout) if short else None


_BY_NAME: dict[str, Carry] = {
    **dict.fromkeys(
        (
            *("relu", "relu_", "relu6", "leaky_relu", "silu", "silu_", "gelu", "elu", "celu"),
            *("selu", "mish", "tanh", "tanh_", "hardswish", "hard_swish", "abs", "sqrt", "square"),
            *("softsign", "swish", "hard_mish", "quick_gelu", "gelu_tanh", "sigmoid", "sigmoid_"),
            *("hardsigmoid", "hard_sigmoid", "softplus", "hardtanh", "exp", "clamp", "clip", "neg"),
            *("log", "rsqrt", "reciprocal", "erf", "dropout", "drop_path", "contiguous", "clone"),
            *("float", "half", "to"),
        ),
        _unchanged,
    ),
    **dict.fromkeys(
        (
            *("add", "iadd", "add_", "sub", "isub", "sub_", "mul", "imul", "mul_", "multiply"),
            *("div", "truediv", "div_", "maximum", "minimum", "pow", "addcmul", "expand_as"),
            "type_as",
        ),
        _elementwise,
    ),
    **dict.fromkeys(
        (
            *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
            *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate"),
            *("dropout2d", "dropout3d"),
        ),
        _at_front,
    ),
    **dict.fromkeys(REDUCTIONS, _reduced),
    "permute": _permuted,
    **dict.fromkeys(("transpose", "swapaxes"), _transposed),
    "flatten": _through_flatten,
    **dict.fromkeys(("view", "reshape"), _viewed),
    "getitem": _piece,
    **dict.fromkeys(("chunk", "split"), _pieces),
    **dict.fromkeys(("cat", "concat"), _joined),
    "pad": _padded,
}
