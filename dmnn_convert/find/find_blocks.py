"""Find the blocks of a model by structure: ``find_blocks(model)`` reads, and changes nothing.

A residual block is a fork, a branch that starts at the fork and nothing else, and a sum of the
branch with a shortcut from the same fork. A chain that expands, convolves depthwise and projects
is a block without a shortcut. Class names play no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from .branch import Branch, analyse_region, conv_of, layer_of
from .chain import chain_before
from .check import check_convertible
from .dims import is_size
from .errors import NoBlocksFoundError
from .hidden import NotSplittable
from .layout import is_pooled
from .naming import block_name, sum_name, unique_names, within
from .observe import Run, observed
from .ops import is_addition, is_subtraction, tensor_inputs
from .parts import barren_modules, learns, trace
from .region import region_between, shortcut_kind, upstream
from .remade import check_tensors, remade_chain
from .replaceable import check_owners, check_replaceable
from .stage import shrinkage
from .trace import Trace
from .tracer import Key


@dataclass(frozen=True)
class Block:
    """One residual or inverted-residual block, or a near miss.

    Attributes:
        name: path of the smallest module that holds it, or a name derived from its layers.
        kind: "basic", "bottleneck", "grouped-bottleneck", "inverted-residual",
            "fused-inverted-residual", "depthwise-separable", "convnext", "mlp", "residual", or
            "sum" and "chain" for near misses.
        widths: channels from the input over each convolution or linear layer to the output.
        kernels: kernel size of each of them.
        stride: by how much it shrinks the image.
        groups: groups of each of them.
        shortcut: "identity", "projection", "parameter-free" or "none".
        hidden: hidden channels that sub-blocks share out.
        split: what split="matched" does: "hidden-channel", "matched-width", "shared-trunk" or
            "own-squeeze" (hidden-channel, but that each sub-block has a squeeze-excite of its
            own); None where no split fits.
        exact_split: what split="exact" does; or None.
        reason: why no split fits, where none does.
        depth: 1 for the first block that a split fits, in execution order; 0 for a near miss.
        stage: 1 for the first of these blocks, and one more whenever strides or pools have
            changed the image's size since the block before; 0 for a near miss.
    """

    name: str
    kind: str
    widths: tuple[int, ...] = ()
    kernels: tuple[int, ...] = ()
    stride: int = 1
    groups: tuple[int, ...] = ()
    shortcut: str = "none"
    hidden: int = 0
    split: str | None = None
    exact_split: str | None = None
    reason: str | None = None
    depth: int = 0
    stage: int = 0
    branch: Branch | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        if self.reason is not None:
            return f"{self.name}  {self.kind}  left dense: {self.reason}"
        shape = "→".join(map(str, self.widths))
        kernels = ",".join(f"{k}×{k}" for k in self.kernels)
        stride = f"stride {self.stride}  " if self.stride > 1 else ""
        split = str(self.split)
        if self.exact_split != self.split:
            split += f" (exact: {self.exact_split})"
        return (
            f"{self.name}  {self.kind}  stage {self.stage} depth {self.depth}  "
            f"{shape}  {kernels}  {stride}"
            f"{'no' if self.shortcut == 'none' else self.shortcut} shortcut  "
            f"hidden {self.hidden}  {split}"
        )


@torch.inference_mode(False)  # what is made under it could never be trained
def find_blocks(model: nn.Module, input_size: Sequence[int] | None = None) -> tuple[Block, ...]:
    """Find every block of a model, in execution order, and near misses with the reason.

    Args:
        model: any eager `nn.Module`.
        input_size: shape of one image, e.g. (C, H, W). A model that can be read only in parts is
            run on it, as `dynamize` does, to see which parts run once for each image; None leaves
            that out.

    Raises:
        ArgumentError: if `model` is no `nn.Module`, or does not run on `input_size`.
        ConversionError: if it is not an eager, unconverted model.
    """
    check_convertible(model, "find_blocks")
    traced = trace(model)
    run = None if input_size is None else observed(model, traced, tuple(input_size))
    return blocks_of(traced, run)


NONE: Mapping[Key, str] = MappingProxyType({})


def blocks_of(
    traced: Trace, run: Run | None = None, refused: Mapping[Key, str] = NONE
) -> tuple[Block, ...]:
    """Find the blocks of a traced model, in execution order.

    Args:
        traced: the model.
        run: what one forward pass showed of a model that can be read only in parts.
        refused: outputs of blocks that are known not to be any, and why.
    """
    positions = {node: i for i, node in enumerate(traced.graph.nodes)}
    sums = _residual_blocks(traced, positions, refused)
    found = _without_parallel([(positions[node], block) for node, block in sums])
    found = _without_nested(traced, found)
    taken = {n for _, b in found if b.branch and not b.reason for n in b.branch.region}
    inner = {positions[node] for node in taken}
    found = [pair for pair in found if not (pair[1].reason and pair[0] in inner)]
    named = {block.name for _, block in found}
    for node, block in _chains(traced, taken, positions, refused):
        if block.reason is None or not any(within(block.name, name) for name in named):
            found.append((positions[node], block))
            named.add(block.name)
    found.sort(key=lambda pair: pair[0])
    names = unique_names([block.name for _, block in found])
    blocks = [replace(b, name=name) for (_, b), name in zip(found, names, strict=True)]
    if run is not None:
        blocks = _as_run(traced, blocks, run)
    barren = barren_modules(traced, {block.name for block in blocks})
    misses = (Block(name, "sum", reason=reason) for name, reason in barren)
    return (*_placed(traced, blocks), *misses)


def _placed(traced: Trace, blocks: Iterable[Block]) -> Iterator[Block]:
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


def _as_run(traced: Trace, blocks: Iterable[Block], run: Run) -> list[Block]:
    """Refuse blocks that do not run once, on the images; order the others by what ran first."""
    time, timed = -1, []
    for block in blocks:
        if block.branch is not None:
            called = ((n, traced.module(n)) for n in block.branch.region)
            layers = [str(n.target) for n, m in called if m is not None and learns(m)]
            time = run.start(layers, time)
            reason = run.objection(traced, block.branch.enclosing, layers)
            block = Block(block.name, block.kind, reason=reason) if reason else block
        timed.append((time, block))
    return [block for _, block in sorted(timed, key=lambda pair: pair[0])]


def _without_parallel(found: list[tuple[int, Block]]) -> list[tuple[int, Block]]:
    """Leave out sums of parallel layers inside a block that starts where they do."""
    taken: dict[fx.Node, fx.Node] = {}
    kept = []
    for position, block in reversed(found):
        branch = block.branch
        if branch is not None and taken.get(branch.output) is branch.fork:
            continue
        if branch is not None and block.reason is None:
            taken.update(dict.fromkeys(branch.region, branch.fork))
        kept.append((position, block))
    return kept[::-1]


def _without_nested(traced: Trace, found: list[tuple[int, Block]]) -> list[tuple[int, Block]]:
    """Refuse blocks whose branch holds another block; sums come innermost first.

    What is next to nothing of the block around it (a sum within an attention) gives way to that.
    """
    kept: list[tuple[int, Block]] = []
    holders: dict[fx.Node, int] = {}
    for position, block in found:
        branch = block.branch
        nodes = [] if branch is None or block.reason else [*branch.region, branch.output]
        inner = {holders[node] for node in nodes if node in holders}
        weights = sum(_weights(traced, kept[i][1]) for i in inner)
        if weights * NEXT_TO_NOTHING > _weights(traced, block):
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


NEXT_TO_NOTHING = 8
"""A block with less than one in so many of the weights around it is not one by itself."""


def _weights(traced: Trace, block: Block) -> int:
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


# --- residual blocks ------------------------------------------------------------------------


def _residual_blocks(
    traced: Trace,
    positions: dict[fx.Node, int],
    refused: Mapping[Key, str],
) -> Iterator[tuple[fx.Node, Block]]:
    for node in traced.graph.nodes:
        if node.meta["key"] in refused:
            yield node, _near_miss(traced, node, refused[node.meta["key"]])
            continue
        if is_size(node):
            continue
        if is_subtraction(node) and _reads_convolutions(traced, node):
            yield node, _near_miss(traced, node, "subtracts (sub); only sums are blocks")
        if is_addition(node):
            block = _residual_block(traced, node, positions)
            if block is not None:
                yield node, block


def _residual_block(traced: Trace, add: fx.Node, positions: dict[fx.Node, int]) -> Block | None:
    operands = tensor_inputs(add)
    if len(operands) != 2 or len(add.args) != 2 or add.kwargs:
        return _odd_sum(traced, add, operands)
    candidates, misses = [], []
    for branch_end, shortcut in (operands, operands[::-1]):
        region = region_between(branch_end, add, shortcut, positions)
        if isinstance(region, str):
            misses.append(region)
        else:
            candidates.append((_layers(traced, region[1]), *region, branch_end, shortcut))
    candidates = [c for c in candidates if c[0] >= max(1, _layers(traced, upstream(c[4], c[1])))]
    if not candidates:
        return _near_miss(traced, add, _worst(misses))
    candidates.sort(key=lambda c: -c[0])
    if len(candidates) == 2 and candidates[0][0] == candidates[1][0]:
        return _near_miss(traced, add, "two branches of equal depth; none of them is the shortcut")
    _, fork, region_nodes, end, shortcut = candidates[0]
    if is_pooled(traced, end) and not is_pooled(traced, shortcut):
        return _near_miss(traced, add, "adds one value a channel to a whole map (broadcast)")
    return _describe(traced, add, fork, region_nodes, end, shortcut, positions)


def _odd_sum(traced: Trace, add: fx.Node, operands: list[fx.Node]) -> Block | None:
    if not _reads_convolutions(traced, add):
        return None
    if len(operands) == 2:
        return _near_miss(traced, add, "a scaled sum (alpha=); only plain sums are blocks")
    return _near_miss(traced, add, "adds a constant or a parameter, not a second path")


def _reads_convolutions(traced: Trace, node: fx.Node) -> bool:
    nearby = [n for operand in tensor_inputs(node) for n in (operand, *operand.all_input_nodes)]
    return _convolutions(traced, nearby) > 0


def _near_miss(traced: Trace, add: fx.Node, reason: str) -> Block:
    return Block(sum_name(add), "sum", reason=reason)


def _worst(misses: list[str]) -> str:
    # A branch that is read elsewhere is the more telling of two reasons.
    return (
        sorted(misses, key=lambda m: "read elsewhere" not in m)[0]
        if misses
        else ("no convolution in either path")
    )


def _convolutions(traced: Trace, nodes: Iterable[fx.Node]) -> int:
    return sum(conv_of(traced, node) is not None for node in nodes)


def _layers(traced: Trace, nodes: Iterable[fx.Node]) -> int:
    return sum(layer_of(traced, node) is not None for node in nodes)


def _describe(
    traced: Trace,
    add: fx.Node,
    fork: fx.Node,
    region: list[fx.Node],
    end: fx.Node,
    shortcut: fx.Node,
    positions: dict[fx.Node, int],
) -> Block:
    name = block_name(traced, [*region, add])
    try:
        check_owners(traced, [*region, add])
        check_tensors(traced, region)
        branch = analyse_region(traced, fork, region, end, add, shortcut)
        check_replaceable(traced, branch, positions)
    except NotSplittable as error:
        return Block(name, "residual", reason=str(error))
    return _block(traced, branch, name, shortcut_kind(traced, fork, shortcut))


# --- chains without a sum ---------------------------------------------------------------------


def _chains(
    traced: Trace,
    taken: set[fx.Node],
    positions: dict[fx.Node, int],
    refused: Mapping[Key, str],
) -> Iterator[tuple[fx.Node, Block]]:
    for node in traced.graph.nodes:
        if node in taken or conv_of(traced, node) is None:
            continue
        miss = remade_chain(traced, node)
        if miss is not None:
            yield node, Block(block_name(traced, miss[1]), "chain", reason=miss[0])
            continue
        chain = chain_before(traced, node, positions)
        if chain is None or taken & set(chain.region):
            continue
        name = block_name(traced, chain.region)
        try:
            branch = chain.branch(traced)
            check_replaceable(traced, branch, positions)
        except NotSplittable as error:
            yield chain.region[-1], Block(name, "chain", reason=str(error))
            continue
        if (reason := refused.get(branch.output.meta["key"])) is not None:
            yield branch.output, Block(name, "chain", reason=reason)
            continue
        taken |= set(branch.region)
        yield branch.output, _block(traced, branch, name, "none")


# --- what both share --------------------------------------------------------------------------


def _block(traced: Trace, branch: Branch, name: str, shortcut: str) -> Block:
    layers = [layer for n in branch.region if (layer := layer_of(traced, n)) is not None]
    convs = [layer if isinstance(layer, _ConvNd) else None for layer in layers]
    return Block(
        name=name,
        kind=branch.kind,
        widths=(branch.channels, *(_width(layer) for layer in layers)),
        kernels=tuple(int(conv.kernel_size[0]) if conv else 1 for conv in convs),
        groups=tuple(conv.groups if conv else 1 for conv in convs),
        shortcut=shortcut,
        hidden=branch.width,
        split=branch.matched_split,
        exact_split=branch.exact_split,
        branch=branch,
    )


def _width(layer: _ConvNd | nn.Linear) -> int:
    return layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features
