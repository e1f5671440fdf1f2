"""Channels through operations that change a value's shape."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from ..graph import (
    TracedModel,
    argument,
    gives_tuple,
    is_batch_size,
    joins_rows,
    new_shape,
    parts_rows,
    permutation,
    size_of,
    subject,
)
from .carried import Carried
from .layout import Layout, channel_count, is_pooled, is_vector
from .nodes import VIEWS, adds_dims, op_name, tensor_inputs
from .rank import rank_of
from .shuffle import joined_again, parted_first, shuffle_from, shuffle_to


def through_flatten(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    """Carry channels back through a flattening of pooled maps, or of the places behind them."""
    module = traced.module(node)
    start = getattr(module, "start_dim", None) if module else argument(node, 1, "start_dim")
    end = getattr(module, "end_dim", None) if module else argument(node, 2, "end_dim")
    source = tensor_inputs(node)[0]
    if start == 1 and end in (None, -1) and is_pooled(traced, source) and layout.dim in (1, -1):
        return Carried({source: replace(layout, dim=1)})
    return Carried({source: layout}) if start == 2 and layout.dim == 1 else None


def permuted(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    """Carry channels back through a permutation of all dimensions."""
    order = permutation(node)
    if order is None:
        return None
    dim = order[layout.dim % len(order)]
    return Carried({tensor_inputs(node)[0]: replace(layout, dim=_canonical(dim, len(order)))})


def _canonical(dim: int, rank: int) -> int:
    # Convolutions look for dimension 1, linear layers for the last one.
    return -1 if dim == rank - 1 and dim != 1 else dim


def transposed(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    """Carry channels back through a swap of two dimensions: places and channels, or a shuffle."""
    dims = (argument(node, 1, "dim0", "axis0"), argument(node, 2, "dim1", "axis1"))
    if not all(type(d) is int for d in dims):
        return None
    if set(dims) == {1, 2} and shuffle_from(tensor_inputs(node)[0]) is not None:
        return (
            Carried({tensor_inputs(node)[0]: replace(layout, dim=2)}) if layout.dim == 1 else None
        )
    # A tensor whose dimensions 1 and 2 change places has, as a rule, three: tokens.
    if rank_of(traced, tensor_inputs(node)[0]) not in (None, 3):
        return None
    known = {1: -1, -1: 1, 2: 1} if set(dims) in ({1, 2}, {-1, -2}) else {}
    if layout.dim not in known:
        return None
    return Carried({tensor_inputs(node)[0]: replace(layout, dim=known[layout.dim])})


def viewed(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    """For view(batch, channels, ...) and view(batch, ..., channels): the order stays."""
    if (shuffle := shuffle_to(node)) is not None:
        return joined_again(shuffle, layout)
    if (shuffle := shuffle_from(node)) is not None:
        return parted_first(shuffle, layout)
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


def rows_joined(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    """For x.flatten(0, 1), which a norm of tokens reads: (B, N, C) to (B · N, C)."""
    if joins_rows(node) and layout.dim in (1, -1):
        return Carried({tensor_inputs(node)[0]: replace(layout, dim=-1)})
    return through_flatten(traced, node, layout)


def rows_parted(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    """For norm(x.flatten(0, 1)).reshape_as(x)."""
    if layout.dim != -1 or not parts_rows(node):
        return None
    value, like = tensor_inputs(node)
    return Carried({value: layout, like: layout})


def piece(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    """For x.chunk(k)[i] and for slices that leave the channels whole."""
    source, index = subject(node), node.args[1]
    if not isinstance(source, fx.Node) or isinstance(index, fx.Node):
        return None
    if gives_tuple(source):
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


def widened(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    """Carry channels back through dimensions that are put behind those of a vector."""
    if not adds_dims(node) or op_name(node) in VIEWS or layout.dim != 1:
        return None
    source = tensor_inputs(node)[0]
    value = source
    while adds_dims(value):
        value = tensor_inputs(value)[0]
    return Carried({source: layout}) if is_vector(traced, value) else None


def pieces(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
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


def halved(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    """For GLU along the channels: each half of its input is a segment."""
    module = traced.module(node)
    dim = argument(node, 1, "dim") if module is None else getattr(module, "dim", None)
    dim = -1 if dim is None else dim
    if dim not in (1, -1) or (dim == 1) != (layout.dim == 1) or layout.segments > 1:
        return None
    return Carried({tensor_inputs(node)[0]: replace(layout, count=2 * layout.count, segments=2)})


def joined(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    """Carry channels back through a concatenation, each input's run to that input."""
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
