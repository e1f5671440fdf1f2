"""The graphs of training and of evaluation as one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from .in_training import without_additions
from .lines import defined_at
from .modes import depends_on_mode, reads_other_modes
from .sizes import Given
from .traced import TRAINING, TracedModel, forget, owner, trace_in_mode
from .wiring import differently_wired


def retrace(
    root: nn.Module,
    opened: frozenset[str] | None,
    constants: dict[str, Any] | None,
    given: Given | None = None,
) -> TracedModel:
    """Trace a skeleton, which nothing else uses, in both modes and merge the graphs."""
    passing: frozenset[str] = frozenset()
    while True:
        merged = trace_in_mode(root, opened, constants, passing, given, training=False)
        kept = _tensors_read(merged)
        forget(root, merged)  # so that the second trace uses the same names
        training = trace_in_mode(root, opened, constants, passing, given, training=True)
        idle = {p for p in merged.calls if not merged.issued[p]} - set(merged.closed)
        found = {path for path in idle if training.issued[path] or path in training.closed}
        if not found:
            break
        forget(root, training)
        passing |= found
    vars(root).update(merged.constants)
    _put_back(root, kept)
    _merge(merged, training)
    return merged


def _tensors_read(traced: TracedModel) -> dict[str, Any]:
    """Return what the nodes that read a tensor read, by its path."""
    return {str(n.target): traced.attribute(n) for n in traced.graph.nodes if n.op == "get_attr"}


def _put_back(root: nn.Module, tensors: dict[str, Any]) -> None:
    """Let a skeleton hold the tensors of evaluation: a train() may delete those that it caches."""
    for path, tensor in tensors.items():
        holder, _, name = path.rpartition(".")
        module = root.get_submodule(holder)
        if getattr(module, name, None) is not tensor:
            setattr(module, name, tensor)


def _by_owner(graph: fx.Graph, skip: Iterable[str]) -> dict[str, list[fx.Node]]:
    skipped = set(skip)
    nodes: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if not (node.op == "call_module" and node.target in skipped):
            nodes.setdefault(owner(node), []).append(node)
    return nodes


Pairs = list[tuple[fx.Node, fx.Node]]
"""Nodes of a forward in evaluation, each with the same in training."""


def _merge(evaluated: TracedModel, trained: TracedModel) -> None:
    """Put `TRAINING` into the evaluation graph; list all other differences."""
    evaluated.unstable.update(trained.unstable)
    evaluated.used |= trained.used
    evaluated.sizes |= trained.sizes
    twins: dict[fx.Node, fx.Node] = {}
    looked_into = set(evaluated.calls) | set(trained.calls)
    ours = _by_owner(evaluated.graph, looked_into)
    theirs = _by_owner(trained.graph, looked_into)
    pairs: dict[str, Pairs] = {}
    for path in {**ours, **theirs, **trained.closed}:
        if path in trained.closed:
            evaluated.unstable[path] = trained.closed[path]
            continue
        mine = ours.get(path, [])
        common = _common(evaluated, path, mine, trained, theirs.get(path, []), twins)
        if common is None or not _merge_nodes(evaluated, mine, trained, common):
            evaluated.unstable[path] = _differs(evaluated.root, path)
        else:
            pairs[path] = list(zip(mine, common, strict=True))
    for path, both in pairs.items():
        read = any(depends_on_mode(mine) or str(mine.target) in evaluated.made for mine, _ in both)
        cls: Any = type(evaluated.root.get_submodule(path))
        if read and reads_other_modes(cls):
            reason = f"its forward{defined_at(cls.forward)} asks for the mode of another module"
            evaluated.unstable.setdefault(path, reason)
    for path in differently_wired(evaluated, trained, pairs, twins):
        evaluated.unstable.setdefault(path, _differs(evaluated.root, path))


def _differs(root: nn.Module, path: str) -> str:
    where = defined_at(type(root.get_submodule(path)).forward)
    return f"its forward differs between training and evaluation{where}"


def _common(
    evaluated: TracedModel,
    path: str,
    ours: list[fx.Node],
    trained: TracedModel,
    theirs: list[fx.Node],
    twins: dict[fx.Node, fx.Node],
) -> list[fx.Node] | None:
    """Return the nodes in training for those in evaluation; None if there is none for one."""
    if len(ours) < len(theirs):
        return without_additions(evaluated, path, ours, trained, theirs, twins)
    keys = [n.meta["key"] for n in ours] == [n.meta["key"] for n in theirs]
    return theirs if keys else None


def _merge_nodes(
    evaluated: TracedModel, ours: list[fx.Node], trained: TracedModel, theirs: list[fx.Node]
) -> bool:
    for mine, other in zip(ours, theirs, strict=True):
        merged: list[Any] = []
        if not _merge_arguments((mine.args, mine.kwargs), (other.args, other.kwargs), merged):
            return False
        if not _same_constant(
            evaluated.constants.get(str(mine.target)), trained.constants.get(str(other.target))
        ):
            return False
        mine.args, mine.kwargs = merged[0]
    return True


def _same_constant(mine: Any, other: Any) -> bool:
    if isinstance(mine, Tensor) and isinstance(other, Tensor):
        return mine.dtype == other.dtype and torch.equal(mine, other)
    return mine is other


def _merge_arguments(mine: Any, other: Any, out: list[Any]) -> bool:
    """Append to `out` the merged value of two argument trees; False where they cannot be."""
    if isinstance(mine, fx.Node) or isinstance(other, fx.Node):
        out.append(mine)
        return isinstance(mine, fx.Node) and isinstance(other, fx.Node)
    if isinstance(mine, dict):
        values: list[Any] = []
        out.append({})
        same = isinstance(other, dict) and list(mine) == list(other)
        same = same and all(_merge_arguments(mine[k], other[k], values) for k in mine)
        out[-1] = dict(zip(mine, values, strict=False))
        return same
    if isinstance(mine, tuple | list):
        values = []
        same = type(mine) is type(other) and len(mine) == len(other)
        same = same and all(
            _merge_arguments(a, b, values) for a, b in zip(mine, other, strict=True)
        )
        out.append(tuple(values) if isinstance(mine, tuple) else values)
        return same
    if isinstance(mine, slice) and isinstance(other, slice):
        bounds: list[Any] = []
        pairs = ((mine.start, other.start), (mine.stop, other.stop), (mine.step, other.step))
        same = all(_merge_arguments(a, b, bounds) for a, b in pairs)
        out.append(slice(*bounds))
        return same
    if mine is False and other is True:
        out.append(TRAINING)
        return True
    out.append(mine)
    return bool(type(mine) is type(other) and mine == other)
