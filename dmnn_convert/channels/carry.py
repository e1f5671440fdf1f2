"""How an operation carries channels from its inputs to its output.

`carried(traced, node, layout)` answers, for an operation whose output holds the channels as
`layout` says: which inputs hold them, and how? None means that the operation mixes channels, or
that no rule here knows it. To support a new operation, add one entry to a table here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .dims import (
    argument,
    gives_pieces,
    is_batch_size,
    is_size,
    joins_rows,
    keeps_dim,
    new_shape,
    parts_rows,
    permutation,
    reduced_dims,
    size_of,
    subject,
)
from .layout import (
    AT_FRONT,
    AT_FRONT_CLASSES,
    ELEMENTWISE,
    NORM_CLASSES,
    REDUCTIONS,
    UNCHANGED,
    UNCHANGED_CLASSES,
    Layout,
    channel_count,
    constant_value,
    is_broadcast,
    is_pooled,
    is_vector,
    rank_of,
)
from .ops import Role, class_name, is_plain_conv, is_row_wise_conv, op_name, rule, tensor_inputs
from .trace import Trace, is_constant


@dataclass(frozen=True)
class Carried:
    """Where an operation takes the channels of its output from.

    Attributes:
        inputs: values that hold them.
        parameters: tensors of the model with one entry a channel.
        units: of how many parts, at most, the channels keep apart (groups).
    """

    inputs: dict[fx.Node, Layout]
    parameters: frozenset[fx.Node] = frozenset()
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


def _module_carry(module: nn.Module | None) -> Carry | None:
    if isinstance(module, _ConvNd):
        known = is_plain_conv(module) or is_row_wise_conv(module)
        known = known and not isinstance(module, _ConvTransposeNd)
        return _through_groups if known and module.groups > 1 else None
    return _BY_CLASS.get(class_name(module))


def _unchanged(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    inputs = [source for source in node.all_input_nodes if not is_size(source)]
    return Carried({inputs[0]: layout}) if len(inputs) == 1 else None


def _at_front(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    """For operations on positions, whose channels stand in dimension 1."""
    module = traced.module(node)
    name = class_name(module) if module is not None else op_name(node)
    spatial = next((int(c) for c in name if c.isdigit()), None)
    source = tensor_inputs(node)[0]
    rank = rank_of(traced, source)
    if layout.dim != 1 or (spatial and rank and rank != spatial + 2):
        return None  # a pool of another rank takes channels for places
    return _unchanged(traced, node, layout)


def _through_norm(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    activation = getattr(traced.module(node), "act", None)
    if rule(traced, node).role is not Role.NORM or getattr(activation, "num_parameters", 1) > 1:
        return None
    source = values[0] if (values := tensor_inputs(node)) else node
    if layout.dim == -1 and (joins_rows(source) or is_vector(traced, source)):
        return Carried({source: layout})
    # A functional norm reads its tensors besides.
    return Carried({source: layout}) if layout.dim == 1 else None


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


def _elementwise(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    inputs: dict[fx.Node, Layout] = {}
    parameters: set[fx.Node] = set()
    for source in node.all_input_nodes:
        if is_constant(source):
            value = constant_value(traced, source)
            if value is None:
                return None
            if value.numel() == 1:
                continue
            if not _stands_for_channels(traced, node, source, value, layout):
                return None
            parameters.add(source)
        elif is_size(source):
            return None  # a sub-block would measure its own share
        elif not is_broadcast(traced, source, layout.dim):
            inputs[source] = layout
    if len(inputs) > 1:
        inputs = {source: replace(layout, sure=False) for source in inputs}
    return Carried(inputs, frozenset(parameters)) if inputs else None


def _stands_for_channels(
    traced: Trace, node: fx.Node, source: fx.Node, value: Tensor, layout: Layout
) -> bool:
    """Return whether a parameter that `node` reads has one entry a channel, and may be cut."""
    if layout.segments > 1:
        return False
    rank, dim = value.dim(), layout.dim
    if dim >= 0:
        # A map has four dimensions where nothing tells, so that (C, 1, 1) reads like (1, C, 1, 1).
        dim -= rank_of(traced, node) or dim + 3
    if not 0 <= dim + rank < rank or value.shape[dim] != layout.count:
        return False
    return _source_of(traced, source, layout.count) is not None


def _source_of(traced: Trace, node: fx.Node, count: int) -> fx.Node | None:
    """Return the parameter behind a constant if its one long dimension can simply be cut."""
    while node.op != "get_attr":
        if op_name(node) != "unsqueeze" and count in new_shape(node):
            return None
        node = node.all_input_nodes[0]
    value = traced.attribute(node)
    return node if isinstance(value, Tensor) and value.numel() == count else None


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
    if rank_of(traced, tensor_inputs(node)[0]) not in (None, 3):
        return None
    known = {1: -1, -1: 1, 2: 1} if set(dims) in ({1, 2}, {-1, -2}) else {}
    if layout.dim not in known:
        return None
    return Carried({tensor_inputs(node)[0]: replace(layout, dim=known[layout.dim])})


def _reduced(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    dims, source = reduced_dims(node), tensor_inputs(node)[0]
    if dims is None:
        return None
    rank = rank_of(traced, source)
    places = {2, 3, 4} if layout.dim == 1 else {(3, 1), (4, 1), (4, 2)}
    kept = set(dims) <= places if layout.dim == 1 else all((rank, d) in places for d in dims)
    if keeps_dim(node):
        return Carried({source: layout}) if kept else None
    if set(dims) in ({2, 3}, {2, 3, 4}) and layout.dim in (1, -1):
        return Carried({source: replace(layout, dim=1)})
    if kept and layout.dim == -1:
        return Carried({source: layout})
    return None


def _viewed(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    """For view(batch, channels, ...) and view(batch, ..., channels): the order stays."""
    shape, source = new_shape(node), subject(node)
    if not isinstance(source, fx.Node) or len(shape) < 2 or not is_batch_size(shape[0]):
        return None
    dim = layout.dim % len(shape) if layout.dim < 0 else layout.dim
    size = size_of(shape[dim]) if dim < len(shape) else None
    if size is None or size[1] is None or layout.segments > 1:
        return None
    read, where = size
    place = {1: 1, 2: -1, 3: -1, -1: -1}.get(where)  # type: ignore[arg-type]
    at_front = (dim == 1 and len(shape) > 2) or is_pooled(traced, source)
    before = 1 if at_front else -1
    if place is None or (read is source and place != before):
        return None
    # The size that is read becomes a sub-block's own only if what it is read from is split too.
    inputs = {read: replace(layout, dim=place)}
    inputs[source] = replace(layout, dim=before)
    return Carried(inputs)


def _rows_joined(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    """For x.flatten(0, 1), which a norm of tokens reads: (B, N, C) to (B · N, C)."""
    if joins_rows(node) and layout.dim in (1, -1):
        return Carried({tensor_inputs(node)[0]: replace(layout, dim=-1)})
    return _through_flatten(traced, node, layout)


def _rows_parted(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    """For norm(x.flatten(0, 1)).reshape_as(x)."""
    if layout.dim != -1 or not parts_rows(node):
        return None
    value, like = tensor_inputs(node)
    return Carried({value: layout, like: layout})


def _piece(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    """For x.chunk(k)[i] and for slices that leave the channels whole."""
    source, index = subject(node), node.args[1]
    if not isinstance(source, fx.Node) or isinstance(index, fx.Node):
        return None
    if gives_pieces(source):
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
    source = subject(node)
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
    given = subject(node)
    parts = list(given) if isinstance(given, tuple | list) else []
    counts = [channel_count(traced, part) or 0 for part in parts if isinstance(part, fx.Node)]
    if len(set(parts)) != len(parts) or 0 in counts or sum(counts) != layout.count:
        return None
    return Carried(
        {part: replace(layout, count=count) for part, count in zip(parts, counts, strict=True)}
    )


def _padded(traced: Trace, node: fx.Node, layout: Layout) -> Carried | None:
    padding = argument(node, 1, "pad")
    rank = rank_of(traced, tensor_inputs(node)[0]) or 3
    short = isinstance(padding, tuple | list) and len(padding) <= 2 * (rank - 2)
    return _at_front(traced, node, layout) if short else None


_BY_CLASS: dict[str, Carry] = {
    **dict.fromkeys(UNCHANGED_CLASSES, _unchanged),
    **dict.fromkeys(AT_FRONT_CLASSES, _at_front),
    **dict.fromkeys(NORM_CLASSES, _through_norm),
    "GroupNorm": _through_group_norm,
    "PReLU": _through_prelu,
    "Flatten": _through_flatten,
}

_BY_NAME: dict[str, Carry] = {
    **dict.fromkeys(UNCHANGED, _unchanged),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(AT_FRONT, _at_front),
    **dict.fromkeys(REDUCTIONS, _reduced),
    "permute": _permuted,
    **dict.fromkeys(("transpose", "swapaxes"), _transposed),
    "flatten": _rows_joined,
    "reshape_as": _rows_parted,
    **dict.fromkeys(("view", "reshape"), _viewed),
    "getitem": _piece,
    **dict.fromkeys(("chunk", "split"), _pieces),
    **dict.fromkeys(("cat", "concat"), _joined),
    "pad": _padded,
}
