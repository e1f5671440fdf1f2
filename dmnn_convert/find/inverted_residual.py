"""Inverted residuals that end without a sum: expand → depthwise → project, or without expand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from ..channels import (
    CONCATENATIONS,
    NotSplittable,
    conv_of,
    is_pooled,
    op_name,
    rule,
    tensor_inputs,
)
from ..graph import Key, Role, TracedModel, at_line, is_size
from .block import Block, block
from .branch import Branch, analyse_region
from .naming import block_name
from .region import own_sizes, readers
from .reparametrized import remade_chain
from .replaceable import check_replaceable


@dataclass(frozen=True)
class DepthwiseChain:
    """A chain from `fork` (left out) to the projection and its norm, in graph order."""

    fork: fx.Node
    region: tuple[fx.Node, ...]
    end: fx.Node
    expands: bool

    def branch(self, traced: TracedModel) -> Branch:
        """Describe the chain.

        Raises:
            NotSplittable: with the reason, if no split fits.
        """
        where = None if self.expands else _joined_later(traced, self.end)
        if where is not None:
            raise NotSplittable(f"its output is only a part of what {at_line(where)} joins")
        return analyse_region(traced, self.fork, self.region, self.end, self.end, None)


def chain_before(traced: TracedModel, consumer: fx.Node) -> DepthwiseChain | None:
    """Return the chain that a pointwise convolution ends, or None."""
    last = conv_of(traced, consumer)
    if (
        last is None
        or rule(traced, consumer).role is not Role.DENSE
        or set(last.kernel_size) != {1}
    ):
        return None
    inside, waiting = {consumer}, _values(consumer)
    depthwise: tuple[fx.Node, set[fx.Node]] | None = None
    while waiting:
        pending = max(waiting, key=traced.positions.__getitem__)
        if pending.op == "placeholder" or any(r not in inside for r in readers(pending)):
            break
        conv = conv_of(traced, pending)
        waiting = (waiting - {pending}) | (_values(pending) - inside)
        inside.add(pending)
        if conv is None or len(waiting) != 1:
            continue
        fork = next(iter(waiting))
        if not _is_single(traced, inside - {consumer, pending}):
            break
        if conv.groups == conv.in_channels > 1:
            depthwise = depthwise or (fork, set(inside))
        elif rule(traced, pending).role is Role.DENSE:
            expands = conv.out_channels > conv.in_channels and set(conv.kernel_size) == {1}
            projects = last.out_channels < last.in_channels
            if depthwise and expands and projects:
                return _chain(traced, consumer, fork, inside, expands=True)
            break
    if depthwise is None:
        return None
    return _chain(traced, consumer, *depthwise, expands=False)


def _values(node: fx.Node) -> set[fx.Node]:
    return {source for source in tensor_inputs(node) if not is_size(source)}


def _is_single(traced: TracedModel, between: set[fx.Node]) -> bool:
    """Return whether no dense layer but a squeeze-excite stands between two others."""
    dense = (node for node in between if rule(traced, node).role is Role.DENSE)
    return all(is_pooled(traced, source) for node in dense for source in tensor_inputs(node))


def _chain(
    traced: TracedModel,
    consumer: fx.Node,
    fork: fx.Node,
    inside: set[fx.Node],
    *,
    expands: bool,
) -> DepthwiseChain:
    users = readers(consumer)
    known = rule(traced, users[0]) if len(users) == 1 else None
    if known is not None and known.role is Role.NORM and known.linear:
        inside = inside | {users[0]}
    position = traced.positions.__getitem__
    end = max(inside, key=position)
    nodes = inside | own_sizes(inside - {end}, fork)
    return DepthwiseChain(fork, tuple(sorted(nodes, key=position)), end, expands)


def _joined_later(traced: TracedModel, end: fx.Node) -> fx.Node | None:
    """Return the concatenation that an output goes into, over operations on single values."""
    node = end
    while len(node.users) == 1:
        node = next(iter(node.users))
        if op_name(node) in (*CONCATENATIONS, "stack"):
            return node
        known = rule(traced, node)
        if known.role not in (Role.NORM, Role.CHANNELWISE) or len(tensor_inputs(node)) > 1:
            return None
    return None


# --- chains without a sum ---------------------------------------------------------------------


def chains(
    traced: TracedModel,
    taken: set[fx.Node],
    refused: Mapping[Key, str],
) -> Iterator[tuple[fx.Node, Block]]:
    """Yield the end of each chain that no block has taken, and the block that it is."""
    for node in traced.graph.nodes:
        if node in taken or conv_of(traced, node) is None:
            continue
        miss = remade_chain(traced, node)
        if miss is not None:
            yield node, Block(block_name(traced, miss[1]), "chain", reason=miss[0])
            continue
        chain = chain_before(traced, node)
        if chain is None or taken & set(chain.region):
            continue
        name = block_name(traced, chain.region)
        try:
            branch = chain.branch(traced)
            check_replaceable(traced, branch)
        except NotSplittable as error:
            yield chain.region[-1], Block(name, "chain", reason=str(error))
            continue
        if (reason := refused.get(branch.output.meta["key"])) is not None:
            yield branch.output, Block(name, "chain", reason=reason)
            continue
        taken |= set(branch.region)
        yield branch.output, block(traced, branch, name, "none")
