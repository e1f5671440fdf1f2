"""The plain network of one path: multi-path blocks become the layers that run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..errors import GateMismatchError
from ..graph import (
    TRAINING,
    TracedModel,
    below,
    copied,
    joined,
    retrace,
    skeleton,
    with_plain_numbers,
)
from ..nn import (
    AnyBatchNorm,
    MultiPathBlock,
    NestedBlock,
    Shares,
    detach,
    multi_path_blocks,
    prefix,
    shell,
)
from .fold import fold_norms
from .merge import merged
from .parts import Inliner, part_of

_HOOKS = tuple(n for n in vars(nn.Module()) if "hook" in n and "state_dict" not in n)


class _Hooks(dict[str, Any]):
    """Hooks of a graph module, which a copy keeps, and a pickle would lose."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hooks:
        return _Hooks({name: copy.deepcopy(hooks, memo) for name, hooks in self.items()})

    def __reduce__(self) -> tuple[Any, ...]:
        if any(self.values()):
            raise TypeError(
                "cannot pickle a frozen network's module with hooks, which torch.fx would lose; "
                "remove them first, or save its state_dict()."
            )
        return dict, ()


def plain_network(model: nn.Module, gates: Tensor) -> nn.Module:
    """Return the plain network that remains of a converted model under gates (total sub-blocks,).

    Raises:
        ArgumentError: for a model that is not converted.
        GateMismatchError: for gates of another model, or ones that no image can have.
    """
    sizes = multi_path_blocks(model)[0].controller.chain.sizes
    _check_gates(gates, sizes)
    own = copied(model)
    blocks = multi_path_blocks(own)
    on = [part.nonzero().flatten().tolist() for part in gates.split(sizes)]
    _check_possible(own, blocks, on)
    running = dict(zip(blocks, on, strict=True))
    detach(own)
    for name, traced in reversed(_traced_holders(own).items()):
        plain = _without_blocks(own.get_submodule(name), traced, running)
        if not name:
            return plain
        parent, _, child = name.rpartition(".")
        own.get_submodule(parent)._modules[child] = plain
    return own


def plain_block(block: MultiPathBlock, on: Sequence[int]) -> fx.GraphModule:
    """Return a block with some of its sub-blocks on as a part, its norms folded where possible.

    It takes the block's input and its shortcut, or only the input if the block has none.

    Args:
        block: in evaluation; layers that are not folded or merged stay the block's own.
        on: the sub-blocks; one or more.
    """
    graph, root = fx.Graph(), nn.Module()
    names = ("x",) if block.controller.keep_one else ("x", "shortcut")
    call = graph.call_module("block", tuple(map(graph.placeholder, names)))
    graph.output(call)
    _inline(Inliner(root, graph, call), call, block, on)
    fold_norms(root, graph)
    _as_functions(root, graph)
    return fx.GraphModule(root.eval(), graph, type(block).__name__)


def _check_gates(gates: Tensor, sizes: Sequence[int]) -> None:
    total = sum(sizes)
    if gates.shape != (total,):
        raise GateMismatchError(
            f"freeze: a path of shape {tuple(gates.shape)}, but this model has {total} sub-blocks; "
            f"give gates ({total},). Was the path taken from another model?"
        )
    if not torch.all((gates == 0) | (gates == 1)):
        raise GateMismatchError("freeze: a path is made of exact zeros and ones.")


def _check_possible(
    model: nn.Module, blocks: Sequence[MultiPathBlock], on: Sequence[Sequence[int]]
) -> None:
    names = {id(module): name for name, module in model.named_modules()}
    for block, running in zip(blocks, on, strict=True):
        if block.controller.keep_one and not running:
            raise GateMismatchError(
                f"freeze: {names[id(block)]} has no shortcut, so one of its sub-blocks must run; "
                "turn on at least one in the path."
            )


def _traced_holders(model: nn.Module) -> dict[str, TracedModel]:
    """Trace each module that holds multi-path blocks; those that hold others come first.

    A conversion may have written the forward of a module into that of one around it, which then
    calls the inner module's blocks and layers itself. There is one graph for both.
    """
    holders = [
        name
        for name, module in model.named_modules()
        if any(isinstance(child, MultiPathBlock) for child in module.children())
    ]
    traced: dict[str, TracedModel] = {}
    entered: set[str] = set()
    for name in holders:
        if name not in entered:
            inside = [path.removeprefix(f"{name}.") for path in holders if below(path, name)]
            traced[name], used = _traced_with(model.get_submodule(name), inside)
            entered.update(joined(name, path) for path in used)
    return traced


def _traced_with(holder: nn.Module, inside: Sequence[str]) -> tuple[TracedModel, set[str]]:
    """Trace a holder, and into those `inside` of it whose parts its graph uses; return these."""
    used: set[str] = set()
    while True:
        around = {".".join(p.split(".")[: i + 1]) for p in used for i in range(p.count(".") + 1)}
        traced = retrace(skeleton(holder), frozenset(around), {})
        targets = [str(n.target) for n in traced.graph.nodes if n.op in ("call_module", "get_attr")]
        more = {path for path in inside if any(below(target, path) for target in targets)}
        if more <= used:
            return traced, used
        used |= more


def _without_blocks(
    holder: nn.Module, traced: TracedModel, running: Mapping[MultiPathBlock, Sequence[int]]
) -> fx.GraphModule:
    """Return a module that holds multi-path blocks as a graph of plain layers."""
    with_plain_numbers(traced.graph)
    vars(holder).update(traced.constants)
    for node in list(traced.graph.nodes):
        block = holder.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(block, MultiPathBlock):
            parent, _, child = str(node.target).rpartition(".")
            del holder.get_submodule(parent)._modules[child]
            _inline(Inliner(holder, traced.graph, node), node, block, running[block])
    _as_functions(holder, traced.graph)
    traced.graph._tracer_cls = None  # so that a pickle does not ask for this package's tracer
    result = fx.GraphModule(holder, traced.graph, type(holder).__name__)
    for module in result.modules():
        if type(module) is nn.Module or module is result:  # what fx.GraphModule makes itself
            module.training = holder.training
    for name in _HOOKS:
        setattr(result, name, getattr(holder, name))
    # torch.fx sets these again on a copy, which would have no hooks else.
    result.meta["_user_preserved_attributes"] = _Hooks({n: vars(result)[n] for n in _HOOKS})
    return result


def _as_functions(root: nn.Module, graph: fx.Graph) -> None:
    """Call norms that a conversion made of functional ones as functions again."""
    for node in list(graph.nodes):
        norm: Any = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, AnyBatchNorm):
            continue
        with graph.inserting_before(node):
            tensors: dict[str, Any] = {
                name: None
                if getattr(norm, name) is None
                else graph.get_attr(f"{node.target}.{name}")
                for name in ("running_mean", "running_var", "weight", "bias")
            }
            options: dict[str, Any] = {
                "training": TRAINING,
                "momentum": norm.momentum,
                "eps": norm.eps,
            }
            call = graph.call_function(F.batch_norm, node.args, {**tensors, **options})
        node.replace_all_uses_with(call)
        graph.erase_node(node)


def _inline(into: Inliner, call: fx.Node, block: MultiPathBlock, on: Sequence[int]) -> None:
    """Put the layers of a block's running sub-blocks in the place of its call."""
    x, shortcut, *context = (*call.args, None)[: max(2, len(call.args))]
    sizes = [size for size in context if isinstance(size, fx.Node)]
    if isinstance(block, NestedBlock):
        output = _nested_sum(into, block, on, x, shortcut, sizes)
    elif not on:
        # A copy, because what follows may write in place and must not reach the block's input.
        output = into.clone(shortcut)  # type: ignore[arg-type]
    else:
        inner = (x,) if block.trunk is None else into.add(part_of(block.trunk), (x, *sizes))  # type: ignore[arg-type]
        output = _gated_sum(into, block, on, inner, sizes)  # type: ignore[arg-type]
        for after in (block.shared_norm, block.post):
            if after is not None:
                (output,) = into.add(part_of(after), (output, *sizes))
        if isinstance(shortcut, fx.Node):
            output = into.sum((shortcut, output))
    call.replace_all_uses_with(output)
    into.graph.erase_node(call)


def _nested_sum(
    into: Inliner,
    block: NestedBlock,
    on: Sequence[int],
    x: Any,
    shortcut: Any,
    sizes: Sequence[fx.Node],
) -> fx.Node:
    """Append the first sub-blocks of a nested block, up to the first that is off."""
    k = prefix(on, keep_one=block.controller.keep_one)
    if not k:
        return into.clone(shortcut)
    part = part_of(_as_own(block.first(k)))
    for node in list(part.graph.nodes):
        if isinstance(part.modules.get(str(node.target)), Shares):
            del part.modules[str(node.target)]
            node.replace_all_uses_with(node.args[0])
            part.graph.erase_node(node)
    (output,) = into.add(part, (x, *sizes))
    return output if shortcut is None else into.sum((shortcut, output))


def _as_own(module: nn.Module) -> nn.Module:
    """Copy a module that may hold views of another's tensors, with tensors of its own."""
    new = shell(module)
    for name, value in new._parameters.items():
        if value is not None:
            trained = value.requires_grad
            new._parameters[name] = nn.Parameter(value.detach().clone(), trained)
    for name, value in new._buffers.items():
        new._buffers[name] = None if value is None else value.detach().clone()
    for name, child in module._modules.items():
        new._modules[name] = None if child is None else _as_own(child)
    return new  # type: ignore[no-any-return]


def _gated_sum(
    into: Inliner,
    block: MultiPathBlock,
    on: Sequence[int],
    inner: Sequence[fx.Node],
    sizes: Sequence[fx.Node],
) -> fx.Node:
    """Append the sum of the running sub-blocks, as one run of wider layers if possible."""
    chosen: list[Any] = [block.sub_blocks[n] for n in on]
    if block.squeeze is None:
        parts = [part_of(sub_block) for sub_block in chosen]
        together = merged(parts, [], sums=1)
        parts = parts if together is None else [together.part]
        return into.sum([into.add(part, (*inner, *sizes))[0] for part in parts])
    count = chosen[0].sums
    halves = [part_of(sub_block.squeeze) for sub_block in chosen]
    others = [part_of(sub_block.excite) for sub_block in chosen]
    first = merged(halves, [], sums=count)
    second = None if first is None else merged(others, first.outputs[count:], sums=1)
    if first is not None and second is not None:
        halves, others = [first.part], [second.part]
    made = [into.add(half, (*inner, *sizes)) for half in halves]
    sums = [into.sum([values[i] for values in made]) for i in range(count)]
    squeezed = into.add(part_of(block.squeeze), (*sums, *inner, *sizes))
    return into.sum(
        [
            into.add(other, (*values[count:], *squeezed, *sizes))[0]
            for other, values in zip(others, made, strict=True)
        ]
    )
