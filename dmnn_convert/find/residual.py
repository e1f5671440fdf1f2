"""Residual blocks: a branch and a shortcut that end in a sum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import fx, nn

from ..channels import (
    HEADS,
    NotSplittable,
    conv_of,
    is_addition,
    is_pooled,
    is_subtraction,
    layer_of,
    tensor_inputs,
)
from ..graph import Key, TracedModel, at_line, is_layer_function, is_size
from .block import Block, block
from .branch import analyse_region
from .conditioning import conditioned_region, is_condition
from .naming import block_name, sum_name
from .region import Miss, Rank, region_between, shortcut_kind, upstream
from .reparametrized import check_tensors
from .replaceable import check_owners, check_replaceable
from .tail import attends


def residual_blocks(
    traced: TracedModel, refused: Mapping[Key, str]
) -> Iterator[tuple[fx.Node, Block]]:
    """Yield each sum that is a block, or nearly one, and the block with its split or reason."""
    for node in traced.graph.nodes:
        if node.meta["key"] in refused:
            yield node, _near_miss(traced, node, refused[node.meta["key"]])
            continue
        if is_size(node):
            continue
        if is_subtraction(node) and _reads_convolutions(traced, node):
            yield node, _near_miss(traced, node, "subtracts (sub); only sums are blocks")
        if is_addition(node):
            block = _residual_block(traced, node)
            if block is not None:
                yield node, block


def _residual_block(traced: TracedModel, add: fx.Node) -> Block | None:
    operands = tensor_inputs(add)
    if len(operands) != 2 or len(add.args) != 2 or add.kwargs:
        return _odd_sum(traced, add, operands)
    candidates, misses = [], []
    for branch_end, shortcut in (operands, operands[::-1]):
        region = region_between(traced, branch_end, add, shortcut)
        if isinstance(region, Miss):
            conditioned = conditioned_region(traced, branch_end, add, shortcut)
            if conditioned is None:
                misses.append(region)
                continue
            region = conditioned
        candidates.append((_layers(traced, region[1]), *region, branch_end, shortcut))
    found = [c for c in candidates if c[0] >= max(1, _layers(traced, upstream(c[4], c[1])))]
    if not found:
        if any(is_condition(traced, operand) for operand in operands):
            return None  # a step inside of a block, which has a sum of its own
        misses += [_lack(traced, c[2]) for c in candidates]
        return _near_miss(traced, add, _most_telling(misses))
    candidates = found
    candidates.sort(key=lambda c: -c[0])
    if len(candidates) == 2 and candidates[0][0] == candidates[1][0]:
        said = f"two branches of equal depth; none of them is the shortcut of {at_line(add)}"
        return _near_miss(traced, add, said)
    _, fork, region_nodes, end, shortcut = candidates[0]
    if is_pooled(traced, end) and not is_pooled(traced, shortcut):
        if shortcut is not fork and is_condition(traced, end):
            return None
        return _near_miss(traced, add, "adds one value per channel to a whole map (broadcast)")
    return _describe(traced, add, fork, region_nodes, end, shortcut)


def _odd_sum(traced: TracedModel, add: fx.Node, operands: list[fx.Node]) -> Block | None:
    if not _reads_convolutions(traced, add):
        return None
    if len(operands) == 2:
        return _near_miss(traced, add, "a scaled sum (alpha=); only plain sums are blocks")
    return _near_miss(traced, add, "adds a constant or a parameter, not a second path")


def _reads_convolutions(traced: TracedModel, node: fx.Node) -> bool:
    nearby = [n for operand in tensor_inputs(node) for n in (operand, *operand.all_input_nodes)]
    return _convolutions(traced, nearby) > 0


def _near_miss(traced: TracedModel, add: fx.Node, reason: str) -> Block:
    return Block(sum_name(add), "sum", reason=reason)


def _most_telling(misses: list[Miss]) -> str:
    """Return the most telling of the reasons for either path; the other one is the shortcut."""
    return min(misses, key=lambda miss: miss.rank).reason


def _lack(traced: TracedModel, region: Iterable[fx.Node]) -> Miss:
    """Return why a path has no layer that could be split."""
    nodes = list(region)
    if attends(nodes) or any(isinstance(traced.module(n), nn.MultiheadAttention) for n in nodes):
        return Miss(HEADS, Rank.HEADS)
    for node in nodes:
        if is_layer_function(node):
            said = f"{at_line(node)} reads a weight that the forward computes"
            return Miss(said, Rank.COMPUTED_WEIGHT)
    return Miss("no convolution in either path")


def _convolutions(traced: TracedModel, nodes: Iterable[fx.Node]) -> int:
    return sum(conv_of(traced, node) is not None for node in nodes)


def _layers(traced: TracedModel, nodes: Iterable[fx.Node]) -> int:
    return sum(layer_of(traced, node) is not None for node in nodes)


def _describe(
    traced: TracedModel,
    add: fx.Node,
    fork: fx.Node,
    region: list[fx.Node],
    end: fx.Node,
    shortcut: fx.Node,
) -> Block:
    name = block_name(traced, [*region, add])
    try:
        check_owners(traced, [*region, add])
        check_tensors(traced, region)
        branch = analyse_region(traced, fork, region, end, add, shortcut)
        check_replaceable(traced, branch)
    except NotSplittable as error:
        # An attention may have other obstacles, which nobody needs to remove.
        return Block(name, "residual", reason=HEADS if attends(region) else str(error))
    return block(traced, branch, name, shortcut_kind(traced, fork, shortcut))
