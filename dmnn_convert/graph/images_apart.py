"""Operations that keep the images of a batch apart: the meaning of a row's `Images`."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from .dims import (
    argument,
    called,
    gives_pair,
    gives_tuple,
    is_batch_size,
    is_shape,
    is_size,
    is_whole,
    joins_rows,
    new_shape,
    parts_rows,
    permutation,
    reduced_dims,
    subject,
)
from .operations import known
from .rule import Images


def keeps_images_apart(node: fx.Node, name: str) -> bool:
    """Return whether an operation leaves the first dimension, the batch, alone."""
    rule = known(name)
    read = any(map(is_batch_size, node.all_input_nodes))
    return _CHECKS[rule.images](node) and (rule.sized or not read)


def is_apart(dim: object) -> bool:
    """Return whether a dimension is known not to be the batch."""
    # Counted from the back, the third dimension may be the batch.
    return is_whole(dim) and dim != 0 and dim > -3


def _not_reduced(node: fx.Node) -> bool:
    dims = reduced_dims(node)
    # Counted from the back, the third dimension may be the batch; of vectors, the second.
    apart = dims is not None and 0 not in dims and min(dims) > -3 and set(dims) != {-2}
    return apart or _sums_stack(node)


def _sums_stack(node: fx.Node) -> bool:
    """Return whether a node is torch.stack([...]).sum(0), a sum of several values."""
    source = subject(node)
    named = [called(n) for n in (node, source) if n]
    stacked = named == ["sum", "stack"] and isinstance(source, fx.Node) and len(source.users) == 1
    return stacked and reduced_dims(node) == (0,) and argument(source, 1, "dim") in (None, 0)


def _stacked_apart(node: fx.Node) -> bool:
    users = list(node.users)
    return _not_along(node) or (len(users) == 1 and _sums_stack(users[0]))


def _stays_first(node: fx.Node) -> bool:
    order = permutation(node)
    return order is not None and order[:1] == (0,)


def _not_swapped(node: fx.Node) -> bool:
    dims = (argument(node, 1, "dim0", "axis0"), argument(node, 2, "dim1", "axis1"))
    return all(is_whole(d) and d != 0 for d in dims)


def _not_along(node: fx.Node) -> bool:
    rule = known(called(node))
    dim = argument(node, rule.dim_at, "dim", "axis")
    return is_apart(rule.dim if dim is None else dim)


def _flattened_later(node: fx.Node) -> bool:
    start = argument(node, 1, "start_dim")
    return (is_whole(start) and start >= 1) or joins_rows(node)


def _same_batch(node: fx.Node) -> bool:
    shape = new_shape(node)
    return bool(shape) and (is_batch_size(shape[0]) or is_shape(shape[0]))


def _whole_batch(node: fx.Node) -> bool:
    index = node.args[1]
    if isinstance(subject(node), fx.Node) and (is_size(node) or gives_tuple(subject(node))):
        return True
    first = index[0] if isinstance(index, tuple) and index else index
    return first is Ellipsis or first == slice(None)


def _expanded(node: fx.Node) -> bool:
    shape = new_shape(node)
    given = bool(shape) and (shape[0] == -1 or is_batch_size(shape[0]))
    return given or (len(shape) == 1 and is_shape(shape[0]))


def _repeated(node: fx.Node) -> bool:
    times = new_shape(node)
    return len(times) > 1 and times[0] == 1


def _in_equation(node: fx.Node) -> bool:
    equation, *operands = node.args if node.args else (None,)
    if not isinstance(equation, str) or equation.count("->") != 1 or "." in equation:
        return False
    left, right = equation.replace(" ", "").split("->")
    terms, image = left.split(","), right[:1]
    if len(terms) != len(operands) or right.count(image) != 1 or not image:
        return False
    return all(
        isinstance(operand, fx.Node)
        and (
            image not in term
            if operand.meta.get("constant")
            else term[:1] == image and term.count(image) == 1
        )
        for term, operand in zip(terms, operands, strict=True)
    )


def _in_pattern(node: fx.Node) -> bool:
    pattern = argument(node, 1, "pattern")
    sides = pattern.split("->") if isinstance(pattern, str) else []
    starts = [side.split()[:1] for side in sides]
    return len(sides) == 2 and starts[0] == starts[1] != [] and starts[0][0].isidentifier()


def _padded_behind(node: fx.Node) -> bool:
    # F.pad counts from the last dimension: two pairs leave an image's channels alone.
    padding = argument(node, 1, "pad")
    return isinstance(padding, tuple | list) and len(padding) <= 6


def _not_rolled(node: fx.Node) -> bool:
    if node.target == "flip" and len(node.args) > 2:
        return all(is_whole(d) and d != 0 for d in node.args[1:])
    dims = argument(node, 2 if node.target != "flip" else 1, "dims")
    dims = dims if isinstance(dims, tuple | list) else (dims,)
    return all(is_whole(d) and d != 0 for d in dims)


def _asked(node: fx.Node) -> bool:
    of_pair = node.args[1] in ("values", "indices") and isinstance(subject(node), fx.Node)
    return is_size(node) or (of_pair and gives_pair(subject(node)))


_CHECKS: dict[Images, Callable[[fx.Node], bool]] = {
    Images.ALWAYS: lambda node: True,
    Images.NEVER: lambda node: False,
    Images.NOT_REDUCED: _not_reduced,
    Images.NOT_ALONG: _not_along,
    Images.NOT_MOVED: _stays_first,
    Images.NOT_SWAPPED: _not_swapped,
    Images.NOT_ROLLED: _not_rolled,
    Images.NOT_PADDED: _padded_behind,
    Images.NOT_STACKED: _stacked_apart,
    Images.NOT_JOINED: _flattened_later,
    Images.PARTED: parts_rows,
    Images.SIZED: _same_batch,
    Images.EXPANDED: _expanded,
    Images.REPEATED: _repeated,
    Images.EQUATION: _in_equation,
    Images.PATTERN: _in_pattern,
    Images.TAKEN_WHOLE: _whole_batch,
    Images.ASKED: _asked,
}
