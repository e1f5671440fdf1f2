"""Branches that read a condition besides their input, such as a time embedding.

A condition is a vector for each image, of which a linear layer of the branch makes one value for
each channel of a map. The branch takes it as a second input.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

from torch import fx, nn

from ..channels import (
    adds_dims,
    carries,
    computed_inputs,
    layer_of,
    mark_vector,
    rank_of,
    tensor_inputs,
)
from ..graph import KEEPING_CHANNELS, Carries, TracedModel, gives_tuple, is_constant, is_size
from .region import computed_from, own_sizes, readers, upstream


def conditioned_region(
    traced: TracedModel, end: fx.Node, add: fx.Node, shortcut: fx.Node
) -> tuple[fx.Node, list[fx.Node]] | None:
    """Return the fork and the nodes of a branch with conditions; None if it is no such branch."""
    fork = _fork(traced, end, shortcut)
    if fork is None:
        return None
    inside = _computed_between(traced, fork, end)
    beside: dict[fx.Node, None] = {}
    for node in sorted(inside, key=traced.positions.__getitem__):
        for side in tensor_inputs(node):
            if side in inside or side is fork or side in beside or is_size(side):
                continue
            path = _path(traced, side, node, inside)
            if path is None:
                return None
            beside |= dict.fromkeys(path)
    region = inside | beside.keys()
    for node in region:
        allowed = region | {add} if node is end else region
        if any(reader not in allowed for reader in readers(node)):
            return None
    for node in beside:
        if layer_of(traced, node) is not None:
            mark_vector(node)
    region |= own_sizes(region, fork)
    return fork, sorted(region, key=traced.positions.__getitem__)


def is_condition(traced: TracedModel, value: fx.Node) -> bool:
    """Return whether a value is made of a linear layer's vectors, with the dimensions of a map."""
    widened = False
    while True:
        widened = widened or adds_dims(value) > 0
        layer = layer_of(traced, value)
        if layer is not None:
            return widened and isinstance(layer, nn.Linear)
        sources = computed_inputs(value)
        if len(sources) != 1:
            return False
        value = sources[0]


def _fork(traced: TracedModel, end: fx.Node, shortcut: fx.Node) -> fx.Node | None:
    """Return the last value from which both the branch and the shortcut are computed."""
    above = set(upstream(end))
    shared = (node for node in upstream(shortcut) if node in above and node.op != "get_attr")
    latest = sorted(shared, key=traced.positions.__getitem__, reverse=True)
    return latest[0] if latest and computed_from(traced, shortcut, latest[0]) else None


def _computed_between(traced: TracedModel, fork: fx.Node, end: fx.Node) -> set[fx.Node]:
    """Return the nodes on the ways from the fork to the branch's end."""
    before = set(upstream(end, fork))
    inside = {fork}
    for node in sorted(before, key=traced.positions.__getitem__):
        if not is_size(node) and any(source in inside for source in tensor_inputs(node)):
            inside.add(node)
    return inside - {fork}


def _path(
    traced: TracedModel, side: fx.Node, reader: fx.Node, inside: set[fx.Node]
) -> list[fx.Node] | None:
    """Return the nodes from a linear layer to where its vectors meet a map; None if they do not.

    The map's convolution takes a fixed number of dimensions. If the vectors have got all of them,
    there is one for each image, or one for all.
    """
    if is_constant(side):
        return [n for n in upstream(side) if n.op != "get_attr"]
    others = [n for n in tensor_inputs(reader) if n is not side and n in inside]
    ranks = {rank_of(traced, other) for other in others}
    rank = ranks.pop() if len(ranks) == 1 else None
    if rank is None or carries(traced, reader) is not Carries.ELEMENTWISE:
        return None
    missing = rank - 2
    path = [side]
    for node in _upwards(traced, side):
        if node is not side:
            path.append(node)
        missing -= adds_dims(node)
        if isinstance(layer_of(traced, node), nn.Linear):
            return path if missing == 0 else None
    return None


def _upwards(traced: TracedModel, node: fx.Node) -> Iterator[fx.Node]:
    """Yield a value and those that it is made of, each of one alone, with no fewer dimensions."""
    keeping = KEEPING_CHANNELS | {Carries.PIECES}
    while True:
        yield node
        sources = computed_inputs(node)
        if len(sources) != 1 or layer_of(traced, node) is not None:
            return
        is_piece = node.target is operator.getitem and gives_tuple(sources[0])
        if carries(traced, node) not in keeping and not adds_dims(node) and not is_piece:
            return
        node = sources[0]
