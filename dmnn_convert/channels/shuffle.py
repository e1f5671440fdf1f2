"""The channel shuffle, as one operation or written out: a view, a transposition and a view.

It takes one channel of every group in turn. A share of the channels that is cut from every group
alike is shuffled as the whole is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ..graph import (
    Carries,
    TracedModel,
    argument,
    is_batch_size,
    new_shape,
    permutation,
    plain,
    size_of,
    subject,
)
from .carried import Carried
from .layout import Layout
from .nodes import SWAPS, VIEWS, carries, op_name, tensor_inputs


class WrittenOut(NamedTuple):
    """A shuffle of three operations.

    Attributes:
        value: (B, C, ...), which is shuffled.
        parted: its view (B, groups, C / groups, ...).
        swapped: (B, C / groups, groups, ...).
        joined: the view of that, (B, C, ...).
        groups: how many there are.
    """

    value: fx.Node
    parted: fx.Node
    swapped: fx.Node
    joined: fx.Node
    groups: int


def shuffle_to(joined: fx.Node) -> WrittenOut | None:
    """Return the shuffle whose last view a node is."""
    swapped = _viewed(joined)
    parted = None if swapped is None else _swapped(swapped)
    value = None if parted is None else _viewed(parted)
    if swapped is None or parted is None or value is None:
        return None
    before, after = new_shape(parted), new_shape(joined)
    groups = plain(before[1]) if len(before) > 3 else None
    if len(after) != len(before) - 1 or type(groups) is not int:
        return None
    found = WrittenOut(value, parted, swapped, joined, groups)
    return found if _fits(found, before, after) else None


def shuffle_from(parted: fx.Node) -> WrittenOut | None:
    """Return the shuffle whose first view a node is."""
    node = parted
    for _ in range(4):
        if len(node.users) != 1:
            return None
        node = next(iter(node.users))
        found = shuffle_to(node)
        if found is not None:
            return found if found.parted is parted else None
    return None


def _viewed(node: fx.Node) -> fx.Node | None:
    source = subject(node) if op_name(node) in VIEWS else None
    return source if isinstance(source, fx.Node) else None


def _swapped(node: fx.Node) -> fx.Node | None:
    """Return the value of which a node is a copy with dimensions 1 and 2 swapped."""
    while op_name(node) == "contiguous":
        node = tensor_inputs(node)[0]
    dims = (argument(node, 1, "dim0", "axis0"), argument(node, 2, "dim1", "axis1"))
    swaps = op_name(node) in SWAPS and set(dims) == {1, 2}
    order = permutation(node) if op_name(node) == "permute" else None
    swaps = swaps or (order is not None and order == (0, 2, 1, *range(3, len(order))))
    return tensor_inputs(node)[0] if swaps else None


def _fits(found: WrittenOut, before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Return whether the views part and join the channels alone, whatever their number is."""
    value, places = found.value, len(before) - 3
    same = all(
        size_of(size) in ((value, 2 + i), (value, i - places))
        for sizes in (before[3:], after[2:])
        for i, size in enumerate(sizes)
    )
    batch = is_batch_size(before[0]) and is_batch_size(after[0])
    parts = before[2] == -1 or _is_share(before[2], value, found.groups)
    return batch and same and parts and (after[1] == -1 or size_of(after[1]) == (value, 1))


def _is_share(size: Any, value: fx.Node, groups: int) -> bool:
    if not isinstance(size, fx.Node) or op_name(size) != "floordiv":
        return False
    return size_of(size.args[0]) == (value, 1) and plain(size.args[1]) == groups


# --- channels ---------------------------------------------------------------------------------


def joined_again(found: WrittenOut, layout: Layout) -> Carried | None:
    """Carry the channels of the last view to what it reads."""
    if layout.dim != 1 or layout.count % (found.groups * layout.segments):
        return None
    inputs = {found.swapped: replace(layout, count=layout.count // found.groups)}
    if new_shape(found.joined)[1] != -1:
        # It asks for the value's own size, of which a sub-block has its share.
        inputs[found.value] = replace(layout, segments=layout.segments * found.groups)
    return Carried(inputs)


def parted_first(found: WrittenOut, layout: Layout) -> Carried | None:
    """Carry the channels of the first view to the value: each group holds a run of them."""
    if layout.dim != 2:
        return None
    groups = found.groups
    count, segments = layout.count * groups, layout.segments * groups
    return Carried({found.value: replace(layout, dim=1, count=count, segments=segments)})


def shuffled(traced: TracedModel, node: fx.Node, layout: Layout) -> Carried | None:
    """Carry channels through a shuffle that is one operation."""
    groups = _groups(traced, node)
    if groups is None or layout.dim != 1 or layout.count % (groups * layout.segments):
        return None
    segments = layout.segments * groups
    return Carried({tensor_inputs(node)[0]: replace(layout, segments=segments)})


def _groups(traced: TracedModel, node: fx.Node) -> int | None:
    module = traced.module(node)
    found = argument(node, 1, "groups") if module is None else getattr(module, "groups", None)
    found = plain(found)
    return found if type(found) is int else None


def after_shuffle(
    traced: TracedModel, node: fx.Node, layout: Layout, before: Tensor
) -> Tensor | None:
    """Return a sub-block's channels behind a step of a shuffle; None for other operations.

    Args:
        traced: the model.
        node: the step.
        layout: of its output.
        before: the channels that the sub-block has of its input.
    """
    if carries(traced, node) is Carries.SHUFFLED:
        groups = _groups(traced, node) or 1
        each = layout.count // groups
        return (before % each * groups + before // each).sort().values
    if (found := shuffle_to(node)) is not None:
        return (before[:, None] * found.groups + torch.arange(found.groups)).flatten()
    if shuffle_from(node) is not None:
        return before[before < layout.count]  # of the first group: all of them are cut alike
    return None
