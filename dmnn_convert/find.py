"""Find the blocks of a model by structure: ``find_blocks(model)`` reads, and changes nothing.

A residual block is a fork, a branch that starts at the fork and nothing else, and a sum of the
branch with a shortcut from the same fork. A chain that expands, convolves depthwise and projects
is a block without a shortcut. Class names play no part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from .branch import (
    Branch,
    NotSplittable,
    analyse_chain,
    analyse_region,
    chain_miss,
    common_owner,
    common_path,
    conv_of,
)
from .check import check_convertible
from .errors import NoBlocksFoundError
from .observe import Run, observed
from .ops import is_addition, is_subtraction, tensor_inputs, writes_in_place
from .parts import barren_modules, learns, trace
from .region import region_between, shortcut_kind
from .trace import Trace, owner


@dataclass(frozen=True)
class Block:
    """One residual or inverted-residual block, or a near miss.

    Attributes:
        name: path of the smallest module that holds it, or a name derived from its layers.
        kind: "basic", "bottleneck", "grouped-bottleneck", "inverted-residual",
            "fused-inverted-residual", "residual", or "sum" and "chain" for near misses.
        widths: channels from the input over each convolution to the output.
        kernels: kernel size of each convolution.
        stride: product of the convolutions' strides.
        groups: groups of each convolution.
        shortcut: "identity", "projection", "parameter-free" or "none".
        hidden: hidden channels that sub-blocks share out.
        split: what split="matched" does: "hidden-channel", "matched-width" or "shared-trunk"; None
            where no split fits.
        exact_split: what split="exact" does; or None.
        reason: why no split fits, where none does.
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
            f"{self.name}  {self.kind}  {shape}  {kernels}  {stride}"
            f"{'no' if self.shortcut == 'none' else self.shortcut} shortcut  "
            f"hidden {self.hidden}  {split}"
        )


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


def blocks_of(traced: Trace, run: Run | None = None) -> tuple[Block, ...]:
    """Find the blocks of a traced model, in execution order; `run` is what it was seen to do."""
    positions = {node: i for i, node in enumerate(traced.graph.nodes)}
    found = _without_nested(
        [(positions[node], block) for node, block in _residual_blocks(traced, positions)]
    )
    taken = {n for _, b in found if b.branch and not b.reason for n in b.branch.nodes}
    named = {block.name for _, block in found}
    for node, block in _chains(traced, taken):
        if block.reason is None or not any(_within(block.name, name) for name in named):
            found.append((positions[node], block))
            named.add(block.name)
    found.sort(key=lambda pair: pair[0])
    blocks = _uniquely_named([block for _, block in found])
    if run is not None:
        blocks = _as_run(traced, blocks, run)
    barren = barren_modules(traced, {block.name for block in blocks})
    return (*blocks, *(Block(name, "sum", reason=reason) for name, reason in barren))


def _as_run(traced: Trace, blocks: Iterable[Block], run: Run) -> list[Block]:
    """Refuse blocks that do not run once, on the images; order the others by what ran first."""
    time, timed = -1, []
    for block in blocks:
        if block.branch is not None:
            called = ((n, traced.module(n)) for n in block.branch.nodes)
            layers = [str(n.target) for n, m in called if m is not None and learns(m)]
            time = run.start(layers, time)
            reason = run.objection(traced, block.branch.enclosing, layers)
            block = Block(block.name, block.kind, reason=reason) if reason else block
        timed.append((time, block))
    return [block for _, block in sorted(timed, key=lambda pair: pair[0])]


def _without_nested(found: list[tuple[int, Block]]) -> list[tuple[int, Block]]:
    """Refuse blocks whose branch holds another block; sums come innermost first."""
    kept: list[tuple[int, Block]] = []
    holders: dict[fx.Node, str] = {}
    for position, block in found:
        nodes = [] if block.branch is None else [*block.branch.nodes, block.branch.output]
        inner = next((holders[node] for node in nodes if node in holders), None)
        if inner is None:
            holders.update(dict.fromkeys(nodes, block.name))
        else:
            reason = f"its branch holds another block ({inner})"
            block = Block(block.name, "residual", reason=reason)
        kept.append((position, block))
    return kept


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


def _uniquely_named(blocks: list[Block]) -> list[Block]:
    totals = Counter(block.name for block in blocks)
    used: Counter[str] = Counter()
    named = []
    for block in blocks:
        name = block.name
        if totals[name] > 1:
            name = f"{name}#{used[name]}"
            used[block.name] += 1
        named.append(block if name == block.name else _renamed(block, name))
    return named


def _renamed(block: Block, name: str) -> Block:
    values = {f: getattr(block, f) for f in Block.__dataclass_fields__}
    return Block(**{**values, "name": name})


# --- residual blocks ------------------------------------------------------------------------


def _residual_blocks(
    traced: Trace, positions: dict[fx.Node, int]
) -> Iterator[tuple[fx.Node, Block]]:
    for node in traced.graph.nodes:
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
            candidates.append((_convolutions(traced, region[1]), *region, branch_end, shortcut))
    candidates = [c for c in candidates if c[0]]
    if not candidates:
        return _near_miss(traced, add, _worst(misses))
    candidates.sort(key=lambda c: -c[0])
    if len(candidates) == 2 and candidates[0][0] == candidates[1][0]:
        return _near_miss(traced, add, "two branches of equal depth; none of them is the shortcut")
    _, fork, region_nodes, end, shortcut = candidates[0]
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
    return Block(_sum_name(add), "sum", reason=reason)


def _sum_name(add: fx.Node) -> str:
    return ".".join(filter(None, (owner(add), add.name if not owner(add) else "")))


def _worst(misses: list[str]) -> str:
    # A branch that is read elsewhere is the more telling of two reasons.
    return (
        sorted(misses, key=lambda m: "read elsewhere" not in m)[0]
        if misses
        else ("no convolution in either path")
    )


def _convolutions(traced: Trace, nodes: Iterable[fx.Node]) -> int:
    return sum(conv_of(traced, node) is not None for node in nodes)


def _describe(
    traced: Trace,
    add: fx.Node,
    fork: fx.Node,
    region: list[fx.Node],
    end: fx.Node,
    shortcut: fx.Node,
    positions: dict[fx.Node, int],
) -> Block:
    name = _block_name(traced, [*region, add])
    try:
        _check_owners(traced, [*region, add])
        branch = analyse_region(traced, fork, region, end, add, shortcut)
        _check_rewritable(traced, branch, positions)
    except NotSplittable as error:
        return Block(name, "residual", reason=str(error))
    return _block(traced, branch, name, shortcut_kind(traced, fork, shortcut))


# --- chains without a sum ---------------------------------------------------------------------


def _chains(traced: Trace, taken: set[fx.Node]) -> Iterator[tuple[fx.Node, Block]]:
    for node in traced.graph.nodes:
        if node in taken or conv_of(traced, node) is None:
            continue
        branch = analyse_chain(traced, node)
        if branch is None:
            miss = chain_miss(traced, node)
            if miss is not None:
                yield node, Block(_block_name(traced, miss[1]), "chain", reason=miss[0])
            continue
        if taken & set(branch.nodes):
            continue
        name = _block_name(traced, branch.nodes)
        try:
            _check_rewritable(traced, branch, {})
        except NotSplittable as error:
            yield branch.output, Block(name, "chain", reason=str(error))
            continue
        taken |= set(branch.nodes)
        yield branch.output, _block(traced, branch, name, "none")


# --- what both share --------------------------------------------------------------------------


def _block(traced: Trace, branch: Branch, name: str, shortcut: str) -> Block:
    layers = [conv for n in branch.nodes if (conv := conv_of(traced, n)) is not None]
    stride = 1
    for conv in layers:
        stride *= int(conv.stride[0])
    return Block(
        name=name,
        kind=branch.kind,
        widths=(layers[0].in_channels, *(conv.out_channels for conv in layers)),
        kernels=tuple(int(conv.kernel_size[0]) for conv in layers),
        stride=stride,
        groups=tuple(conv.groups for conv in layers),
        shortcut=shortcut,
        hidden=branch.hidden,
        split="matched-width" if branch.is_bottleneck else branch.exact_split,
        exact_split=branch.exact_split,
        branch=branch,
    )


def _block_name(traced: Trace, nodes: Iterable[fx.Node]) -> str:
    """Name the block after the module that holds it and nothing else, or its first layer."""
    nodes = list(nodes)
    path = common_owner(nodes)
    if not path:
        called = [str(n.target) for n in nodes if n.op == "call_module"]
        shared = common_path([target.split(".") for target in called])
        return ".".join(shared) or (called or [nodes[-1].name])[0]
    parent = path.rpartition(".")[0]
    while parent and path not in traced.parts and _holds_only(traced, parent, path):
        path, parent = parent, parent.rpartition(".")[0]
    return path


def _holds_only(traced: Trace, parent: str, child: str) -> bool:
    inside = [n for n in traced.graph.nodes if _within(owner(n), parent)]
    return bool(inside) and all(_within(owner(n), child) for n in inside)


def _within(path: str, ancestor: str) -> bool:
    return path == ancestor or path.startswith(f"{ancestor}.")


def _check_rewritable(traced: Trace, branch: Branch, positions: dict[fx.Node, int]) -> None:
    removed = [*branch.nodes, branch.output]
    _check_owners(traced, removed)
    for node in removed:
        _check_module(traced, node)
    overwritten = branch.output.args[0] if writes_in_place(traced, branch.output) else None
    if isinstance(overwritten, fx.Node) and any(
        positions[user] > positions[branch.output] for user in overwritten.users
    ):
        raise NotSplittable(f"{overwritten.name} is summed in place and read afterwards")
    if isinstance(overwritten, fx.Node) and overwritten.op == "placeholder" and owner(overwritten):
        # Only the whole model's input belongs to nobody else; a part's is its caller's.
        raise NotSplittable(f"{overwritten.name} is summed in place and may be read by the caller")
    for user in branch.fork.users:
        if writes_in_place(traced, user) and user is not branch.output:
            raise NotSplittable(f"{user.name} overwrites the block's input in place")


def _check_owners(traced: Trace, removed: list[fx.Node]) -> None:
    """Check that the modules whose forwards issued the nodes can get new ones."""
    enclosing = common_owner(removed)
    for path in {owner(n) for n in removed}:
        if path in traced.unstable:
            raise NotSplittable(f"{path or 'the model'}: {traced.unstable[path]}")
        if path != enclosing and path in traced.hooked:
            raise NotSplittable(f"{path} carries a hook; remove it and register it afterwards")
        if len(traced.calls.get(path, [])) > 1:
            raise NotSplittable(f"{path} is called {len(traced.calls[path])} times in one forward")


def _check_module(traced: Trace, node: fx.Node) -> None:
    module = traced.module(node)
    if module is None:
        return
    path = str(node.target)
    if path in traced.hooked:
        raise NotSplittable(f"{path} carries a hook; remove it and register it afterwards")
    parameters = list(module.parameters())
    if not parameters:
        return
    calls = sum(n.op == "call_module" and n.target == path for n in traced.graph.nodes)
    if calls > 1:
        raise NotSplittable(f"{path} is called {calls} times in one forward")
    tied = [traced.tied[id(p)] for p in parameters if id(p) in traced.tied]
    if tied:
        raise NotSplittable(f"{path} shares a parameter ({', '.join(tied[0])})")
