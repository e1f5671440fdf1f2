"""The search for blocks by structure: ``find_blocks(model)`` reads, and changes nothing.

A residual block is a fork, a branch that starts at this fork alone, and a sum of the branch
with a shortcut from the same fork. A chain that expands, convolves depthwise and projects
is a block without a shortcut. Class names play no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from ..channels import layer_of
from ..dryrun import Run, call_record
from ..errors import NoBlocksFoundError
from ..graph import Key, TracedModel, learns, located, trace, untraced_modules, within
from .block import Block
from .convertible import check_convertible
from .inverted_residual import chains
from .naming import unique_names
from .residual import residual_blocks
from .stage import shrinkage


@torch.inference_mode(False)  # what is made under it could never be trained
def find_blocks(model: nn.Module, input_size: Sequence[int] | None = None) -> tuple[Block, ...]:
    """Find every block of a model, in execution order, and near misses with the reason.

    Args:
        model: any eager `nn.Module`.
        input_size: shape of one image, e.g. (C, H, W). A model that can be read only in parts is
            run on it, as `dynamize` does, to see which parts run once for each image; None leaves
            that out.

    Raises:
        ArgumentError: if `model` is not an `nn.Module`, or does not run on `input_size`.
        ConversionError: if it is not an eager, unconverted model.

    Example:
        >>> for block in find_blocks(source):
        ...     print(block.name, block.kind, block.hidden, block.split)
        block1 basic 8 hidden-channel
        block2 basic 8 hidden-channel
    """
    check_convertible(model, "find_blocks")
    traced = trace(model, input_size)
    run = None if input_size is None else call_record(model, traced, tuple(input_size))
    return blocks_of(traced, run)


NOTHING_REFUSED: Mapping[Key, str] = MappingProxyType({})


def blocks_of(
    traced: TracedModel, run: Run | None = None, refused: Mapping[Key, str] = NOTHING_REFUSED
) -> tuple[Block, ...]:
    """Find the blocks of a traced model, in execution order.

    Args:
        traced: the model.
        run: calls of one forward pass of a model that can be read only in parts.
        refused: outputs of sums that are known not to be blocks, and why.
    """
    positions = traced.positions
    sums = residual_blocks(traced, refused)
    found = _without_parallel(traced, [(positions[node], block) for node, block in sums])
    found = _without_nested(traced, found)
    taken = {n for _, b in found if b.branch and not b.reason for n in b.branch.region}
    inner = {positions[node] for node in taken}
    found = [pair for pair in found if not (pair[1].reason and pair[0] in inner)]
    named = {block.name for _, block in found}
    for node, block in chains(traced, taken, refused):
        if block.reason is None or not any(within(block.name, name) for name in named):
            found.append((positions[node], block))
            named.add(block.name)
    found.sort(key=lambda pair: pair[0])
    names = unique_names([block.name for _, block in found])
    nodes = list(positions)
    blocks = [
        replace(b, name=name, reason=b.reason and located(b.reason, nodes[position]))
        for (position, b), name in zip(found, names, strict=True)
    ]
    if run is not None:
        blocks = _as_run(traced, blocks, run)
    barren = untraced_modules(traced, {block.name for block in blocks})
    misses = (Block(name, "sum", reason=reason) for name, reason in barren)
    return (*_placed(traced, blocks), *misses)


def _placed(traced: TracedModel, blocks: Iterable[Block]) -> Iterator[Block]:
    """Add stride, depth and stage to the blocks that a split fits."""
    shrunk = shrinkage(traced)
    depth, stage, before = 0, 0, 0.0
    for block in blocks:
        if block.branch is None or block.reason is not None:
            yield block
            continue
        now = shrunk[block.branch.output]
        depth, stage, before = depth + 1, stage + (now != before), now
        stride = max(1, round(now / shrunk[block.branch.fork]))
        yield replace(block, stride=stride, depth=depth, stage=stage)


def _as_run(traced: TracedModel, blocks: Iterable[Block], run: Run) -> list[Block]:
    """Refuse blocks that do not run once, on the images; order the others by first call."""
    time, timed = -1, []
    for block in blocks:
        if block.branch is not None:
            called = ((n, traced.module(n)) for n in block.branch.region)
            layers = [str(n.target) for n, m in called if n.op == "call_module" and m and learns(m)]
            time = run.start(layers, time)
            reason = run.reason_against(traced, block.branch.enclosing, layers)
            if reason:
                reason = located(reason, block.branch.output)
                block = Block(block.name, block.kind, reason=reason)
        timed.append((time, block))
    return [block for _, block in sorted(timed, key=lambda pair: pair[0])]


def _without_parallel(
    traced: TracedModel, found: list[tuple[int, Block]]
) -> list[tuple[int, Block]]:
    """Leave out sums of parallel layers inside a block that starts where they do."""
    taken: dict[fx.Node, fx.Node] = {}
    usable = {b.branch.output: b for _, b in found if b.branch is not None and b.reason is None}
    kept = []
    for position, block in reversed(found):
        branch = block.branch
        if branch is not None and taken.get(branch.output) is branch.fork:
            continue
        if branch is not None and block.reason is None and not _is_long(traced, block, usable):
            taken.update(dict.fromkeys(branch.region, branch.fork))
        kept.append((position, block))
    return kept[::-1]


def _is_long(traced: TracedModel, block: Block, usable: Mapping[fx.Node, Block]) -> bool:
    """Return whether a block is a skip around others, which all start later."""
    region = () if block.branch is None else block.branch.region
    ends = [usable[node] for node in region if node in usable]
    later = (b for b in ends if b.branch is not None and b.branch.fork in set(region))
    return sum(_weights(traced, b) for b in later) * NEGLIGIBLE > _weights(traced, block)


def _without_nested(traced: TracedModel, found: list[tuple[int, Block]]) -> list[tuple[int, Block]]:
    """Refuse blocks whose branch holds another block; sums come innermost first.

    A sum that is only a tiny part of the block around it (within an attention) gives way to it.
    """
    kept: list[tuple[int, Block]] = []
    holders: dict[fx.Node, int] = {}
    for position, block in found:
        branch = block.branch
        nodes = [] if branch is None or block.reason else [*branch.region, branch.output]
        inner = {holders[node] for node in nodes if node in holders}
        weights = sum(_weights(traced, kept[i][1]) for i in inner)
        if weights * NEGLIGIBLE > _weights(traced, block):
            names = ", ".join(kept[i][1].name for i in sorted(inner))
            nodes, reason = [], f"its branch holds another block ({names})"
            block = Block(block.name, "residual", reason=reason)
        else:
            for i in inner:
                small = Block(kept[i][1].name, "residual", reason=f"it is a part of {block.name}")
                kept[i] = (kept[i][0], small)
        holders.update(dict.fromkeys(nodes, len(kept)))
        kept.append((position, block))
    return kept


NEGLIGIBLE = 8
"""A sum with less than one in this many of the weights around it is not a block of its own."""


def _weights(traced: TracedModel, block: Block) -> int:
    nodes = () if block.branch is None else block.branch.region
    return sum(m.weight.numel() for node in nodes if (m := layer_of(traced, node)) is not None)


def no_blocks_error(model: nn.Module, blocks: Iterable[Block]) -> NoBlocksFoundError:
    """Describe a model without a block that a split fits, with the nearest misses."""
    misses = [f"  {block}" for block in blocks]
    convolutions = sum(isinstance(m, _ConvNd) for m in model.modules())
    lines = misses[:5] + ([f"  … and {len(misses) - 5} more"] if len(misses) > 5 else [])
    if not lines:
        lines = [
            f"  no sums of two paths and no expand → depthwise → project chain; "
            f"{convolutions} convolutions in plain chains or concatenations"
        ]
    return NoBlocksFoundError(
        f"{type(model).__name__} has no residual or inverted-residual block that can be split. "
        "Nearest misses:\n" + "\n".join(lines)
    )
