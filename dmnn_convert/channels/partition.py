"""The partition of hidden channels among sub-blocks, value by value."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.nn.modules.conv import _ConvNd

from ..graph import Carries, TracedModel
from .hidden import Hidden
from .layout import Layout, parameter_behind
from .nodes import CONCATENATIONS, carries, conv_of, group_count, op_name
from .not_splittable import Mismatch
from .shuffle import after_shuffle


def partition(
    traced: TracedModel, hidden: Hidden, N: int, order: Tensor | None = None
) -> list[dict[fx.Node, Tensor]]:
    """Share out the channels of every split value in even runs of independent units.

    Args:
        traced: the model.
        hidden: its hidden channels.
        N: number of sub-blocks.
        order: the units (units,) in the order of the runs; None for the source's. Inside a
            sub-block they are in the source's order.

    Returns:
        For each sub-block, the channels that it holds of each value.

    Raises:
        Mismatch: if two values that meet would hold different channels.
    """
    units = torch.arange(hidden.units) if order is None else order
    nodes = _in_order(hidden)
    return [_share(traced, hidden, nodes, run.sort().values) for run in units.tensor_split(N)]


class Run(NamedTuple):
    """The channels of a value in the order in which sub-blocks add them.

    Attributes:
        channels: their numbers in the source, (count,).
        ends: number of channels of the first 1, 2, … sub-blocks.
    """

    channels: Tensor
    ends: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of channels that each sub-block adds."""
        return tuple(b - a for a, b in zip((0, *self.ends), self.ends, strict=False))


def nested_runs(
    traced: TracedModel, hidden: Hidden, N: int, order: Tensor | None = None
) -> dict[fx.Node, Run]:
    """Order the channels of every split value so that those of the first sub-blocks come first.

    Args:
        traced: the model.
        hidden: its hidden channels.
        N: number of sub-blocks.
        order: the units (units,) in the order in which they are added; None for the source's.

    Raises:
        Mismatch: for a value whose channels fall into several runs, each shared out by itself.
    """
    units = torch.arange(hidden.units) if order is None else order
    nodes = _in_order(hidden)
    whole = _share(traced, hidden, nodes, units)
    ends = accumulate(len(part) for part in units.tensor_split(N))
    firsts = [_share(traced, hidden, nodes, units[:end]) for end in ends]
    for node, channels in whole.items():
        if any(not torch.equal(own[node], channels[: len(own[node])]) for own in firsts):
            raise Mismatch(node, "joins several runs of hidden channels, which cannot be nested")
    return {n: Run(whole[n], tuple(len(own[n]) for own in firsts)) for n in whole}


def units_of(traced: TracedModel, hidden: Hidden) -> dict[fx.Node, Tensor]:
    """Return which unit each channel of every split value belongs to.

    Raises:
        Mismatch: if two values that meet would hold different channels.
    """
    nodes, units = _in_order(hidden), torch.arange(hidden.units)
    whole = _share(traced, hidden, nodes, units)
    found = {node: torch.zeros_like(channels) for node, channels in whole.items()}
    # The channels of all units with a certain bit in their number, bit by bit, tell the number.
    for bit in (1 << i for i in range((hidden.units - 1).bit_length())):
        share = _share(traced, hidden, nodes, units[units.bitwise_and(bit) > 0])
        for node, channels in share.items():
            found[node][channels] += bit
    return found


def _share(
    traced: TracedModel, hidden: Hidden, nodes: list[fx.Node], units: Tensor
) -> dict[fx.Node, Tensor]:
    own: dict[fx.Node, Tensor] = {}
    for node in nodes:
        own[node] = _own(traced, hidden, node, units, own)
    _check_parameters(hidden, own)
    return own


def _check_parameters(hidden: Hidden, own: dict[fx.Node, Tensor]) -> None:
    """Check that everything that reads a tensor of the model needs the same entries of it."""
    needed: dict[fx.Node, Tensor] = {}
    for constant in hidden.parameters:
        for reader in (r for r in constant.users if r in hidden.split):
            kept = needed.setdefault(parameter_behind(constant), own[reader])
            if not torch.equal(kept, own[reader]):
                raise Mismatch(reader, "reads a parameter whose entries others cut differently")


def _in_order(hidden: Hidden) -> list[fx.Node]:
    """Return the split values, each after its inputs."""
    order: dict[fx.Node, None] = {}

    def add(node: fx.Node) -> None:
        stack = [node]
        while stack:
            waiting = [s for s in hidden.sources.get(stack[-1], ()) if s not in order]
            if waiting:
                stack.append(waiting[0])
            else:
                order[stack.pop()] = None

    for node in hidden.layouts:
        add(node)
    return list(order)


def _own(
    traced: TracedModel, hidden: Hidden, node: fx.Node, units: Tensor, own: dict[fx.Node, Tensor]
) -> Tensor:
    layout = hidden.layouts[node]
    sources = hidden.sources.get(node)
    if not sources:
        return _spread(units, layout, hidden.units)
    if op_name(node) in CONCATENATIONS:
        return _concatenated([(own[s], hidden.layouts[s].count) for s in sources])
    first = own[sources[0]]
    if op_name(node) == "getitem" and op_name(sources[0]) in ("chunk", "split"):
        pieces = hidden.layouts[sources[0]].segments
        return _within(first, int(node.args[1]) % pieces, layout.count)  # type: ignore[arg-type]
    behind = after_shuffle(traced, node, layout, first)
    if behind is not None:
        return behind
    if any(not torch.equal(first, own[s]) for s in sources[1:]):
        raise Mismatch(node, "joins channels that different sub-blocks would hold")
    if carries(traced, node) is Carries.HALVED:
        return _within(first, 0, layout.count)
    conv, groups = conv_of(traced, node), group_count(traced, node)
    if conv is not None:
        return _of_groups(node, first, conv)
    if groups is not None:
        _groups_touched(node, first, layout.count // groups)
    return first


def _spread(units: Tensor, layout: Layout, total: int) -> Tensor:
    """Return the channels of some units in each segment of a value."""
    segment = layout.count // layout.segments
    width = segment // total
    starts = torch.arange(layout.segments)[:, None, None] * segment
    return (starts + units[:, None] * width + torch.arange(width)).flatten()


def _concatenated(parts: list[tuple[Tensor, int]]) -> Tensor:
    offset, pieces = 0, []
    for channels, count in parts:
        pieces.append(channels + offset)
        offset += count
    return torch.cat(pieces)


def _within(channels: Tensor, piece: int, size: int) -> Tensor:
    inside = (channels >= piece * size) & (channels < (piece + 1) * size)
    return channels[inside] - piece * size


def _of_groups(node: fx.Node, channels: Tensor, conv: _ConvNd) -> Tensor:
    touched = _groups_touched(node, channels, conv.in_channels // conv.groups)
    width = conv.out_channels // conv.groups
    return (touched[:, None] * width + torch.arange(width)).flatten()


def _groups_touched(node: fx.Node, channels: Tensor, size: int) -> Tensor:
    groups = channels if size == 1 else torch.unique_consecutive(channels // size)
    if len(groups) * size != len(channels):
        raise Mismatch(node, "has groups that two sub-blocks would share")
    return groups
