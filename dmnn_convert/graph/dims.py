"""Dimensions in a graph without shapes: those that operations name, and size expressions."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any, TypeGuard

from torch import fx

from .operations import known
from .rule import Gives
from .vouching import vouched


def is_whole(value: Any) -> TypeGuard[int]:
    """Return whether a value is an integer, not a flag."""
    return isinstance(value, int) and not isinstance(value, bool)


def called(node: fx.Node) -> str:
    """Return the name of what a node calls, whichever library it belongs to."""
    return vouched(node.target) or str(getattr(node.target, "__name__", node.target))


def argument(node: fx.Node, position: int, *names: str) -> Any:
    """Return an argument given by position or by any of the names; None if it is not given."""
    for name in names:
        if name in node.kwargs:
            return node.kwargs[name]
    return node.args[position] if len(node.args) > position else None


def subject(node: fx.Node) -> Any:
    """Return an operation's first argument, by whatever name it is given."""
    return argument(node, 0, "input", "tensors", "self")


def reduced_dims(node: fx.Node) -> tuple[int, ...] | None:
    """Return the dimensions that mean, sum, norm, … reduce; None if they are not constants."""
    dims = argument(node, known(called(node)).dim_at, "dim", "axis")
    dims = (dims,) if isinstance(dims, int) and not isinstance(dims, bool) else dims
    if isinstance(dims, tuple | list) and all(is_whole(d) for d in dims) and dims:
        return tuple(dims)
    return None


def keeps_dim(node: fx.Node) -> bool:
    """Return whether a reduction leaves dimensions of size one."""
    return argument(node, known(called(node)).keepdim_at, "keepdim", "keepdims") is True


def permutation(node: fx.Node) -> tuple[int, ...] | None:
    """Return the order of dimensions that permute asks for."""
    given = node.args[1:] if len(node.args) > 1 else (node.kwargs.get("dims"),)
    if len(given) == 1 and isinstance(given[0], tuple | list):
        given = tuple(given[0])
    order = [d for d in given if is_whole(d)]
    return tuple(d % len(order) for d in order) if len(order) == len(given) else None


def new_shape(node: fx.Node) -> tuple[Any, ...]:
    """Return the sizes that view, reshape or expand ask for: numbers and nodes."""
    given = node.args[1:] or (node.kwargs.get("shape", node.kwargs.get("size", ())),)
    if len(given) == 1 and isinstance(given[0], tuple | list):
        given = tuple(given[0])
    return given


def size_of(node: Any) -> tuple[fx.Node, int | None] | None:
    """Return (x, d) for a node that is the size of x in dimension d; (x, None) for its shape."""
    if not isinstance(node, fx.Node):
        return None
    target = called(node)
    if target == "getattr" and len(node.args) == 2 and node.args[1] == "shape":
        return (subject(node), None)
    if node.op == "call_method" and target == "size":
        dim = argument(node, 1, "dim")
        return (subject(node), dim) if dim is None or is_whole(dim) else None
    if target == "getitem" and isinstance(subject(node), fx.Node):
        shape, index = size_of(subject(node)), node.args[1]
        if shape is not None and shape[1] is None and is_whole(index):
            return (shape[0], index)
        return _size_in_part(subject(node), index)
    return None


def _size_in_part(part: fx.Node, index: Any) -> tuple[fx.Node, int] | None:
    """Return (x, d) for the size ``x.shape[a:b][index]``."""
    cut: Any = part.args[1] if called(part) == "getitem" else None
    whole = size_of(subject(part)) if isinstance(cut, slice) else None
    if whole is None or whole[1] is not None or cut is None or cut.step not in (None, 1):
        return None
    start = 0 if cut.start is None else cut.start
    if not (is_whole(start) and is_whole(index) and index >= 0):
        return None
    dim = start + index
    return (whole[0], dim) if start >= 0 or dim < 0 else None


def is_size(node: fx.Node, arguments: Collection[str] = ()) -> bool:
    """Return whether a node is a size (or dtype, device) or is computed from these alone.

    Args:
        node: of any graph.
        arguments: names of the graph's arguments that are sizes.
    """
    if size_of(node) is not None or _is_kind(node):
        return True
    if node.op == "placeholder":
        return str(node.target) in arguments
    arithmetic = getattr(node.target, "__name__", "") in _ARITHMETIC
    inputs = node.all_input_nodes
    return arithmetic and bool(inputs) and all(is_size(n, arguments) for n in inputs)


def _is_kind(node: fx.Node) -> bool:
    """Return whether a node is a value's dtype, device or number of dimensions."""
    if node.op == "call_method" and node.target == "dim":
        return True
    name = getattr(node.target, "__name__", "")
    return name == "getattr" and node.args[1] in ("dtype", "device", "ndim")


def measured(size: fx.Node) -> list[fx.Node]:
    """Return the values that a size is computed from."""
    of = size_of(size)
    if of is not None:
        return [of[0]]
    if _is_kind(size):
        return list(size.all_input_nodes)
    return [value for part in size.all_input_nodes for value in measured(part)]


def is_unread_part(node: fx.Node) -> bool:
    """Return whether a node takes a part of a tuple or a tensor that nothing reads."""
    return node.op == "call_function" and node.target is operator.getitem and not node.users


_ARITHMETIC = (
    *("add", "sub", "mul", "floordiv", "truediv", "mod", "getitem", "neg", "int"),
    *("ceil", "floor", "trunc", "pow"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "_assert", "expect", "expect_size"),
)


def is_batch_size(value: Any) -> bool:
    """Return whether a value is the size of a tensor's first dimension."""
    size = size_of(value)
    return size is not None and size[1] == 0


def joins_rows(node: fx.Node) -> bool:
    """Return whether a node is x.flatten(0, 1) in norm(x.flatten(0, 1)).reshape_as(x)."""
    name = called(node)
    dims = (argument(node, 1, "start_dim"), argument(node, 2, "end_dim"))
    if name != "flatten" or dims != (0, 1) or len(node.users) != 1:
        return False
    norm = next(iter(node.users))
    after = list(norm.users)
    named = [called(n) for n in after]
    return named == ["reshape_as"] and after[0].args[1] is subject(node)


def parts_rows(node: fx.Node) -> bool:
    """Return whether a node is the reshape_as in norm(x.flatten(0, 1)).reshape_as(x)."""
    norm = subject(node)
    before = norm.args[0] if isinstance(norm, fx.Node) and norm.args else None
    return isinstance(before, fx.Node) and joins_rows(before)


def is_shape(value: Any) -> bool:
    """Return whether a value is a tensor's whole shape."""
    size = size_of(value)
    return size is not None and size[1] is None


def gives_pieces(node: fx.Node) -> bool:
    """Return whether an operation cuts a tensor into a tuple of pieces."""
    return known(called(node)).gives is Gives.PIECES


def pieces_told(node: Any) -> int | None:
    """Return the number of pieces that an operation is asked for; None if it is not told.

    A tensor with fewer channels than chunk is asked for gives fewer: a run then stops at the first
    that is missing.
    """
    if not isinstance(node, fx.Node) or called(node) not in _CUTS:
        return None
    asked = argument(node, 1, "chunks", "split_size_or_sections", "split_size", "split_sizes")
    if called(node) in ("chunk", "unsafe_chunk"):
        return asked if is_whole(asked) else None
    return len(asked) if isinstance(asked, tuple | list) else None


_CUTS = ("chunk", "unsafe_chunk", "split", "split_with_sizes")


def gives_pair(node: fx.Node) -> bool:
    """Return whether an operation gives (values, indices), as max does along a dimension."""
    gives = known(called(node)).gives
    return gives is Gives.VALUES or (gives is Gives.PAIR and reduced_dims(node) is not None)


def gives_tuple(node: fx.Node) -> bool:
    """Return whether an operation gives a tuple of tensors for one tensor."""
    return gives_pieces(node) or gives_pair(node)
