"""Forwards whose operations are the same in training and in evaluation, but read other values.

``return z if self.training else y`` issues the same nodes in both modes. What differs is which of
them an operation, or the caller, is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from torch import fx
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from .traced import TracedModel


def differently_wired(
    evaluated: TracedModel,
    trained: TracedModel,
    pairs: Mapping[str, Sequence[tuple[fx.Node, fx.Node]]],
    twins: Mapping[fx.Node, fx.Node],
) -> Iterator[str]:
    """Yield the modules whose forward hands other values on in training than in evaluation.

    Args:
        evaluated: the graph of evaluation.
        trained: the graph of training.
        pairs: by module, the nodes of its forward in evaluation with the same in training.
        twins: more nodes in training -> what stands for them in evaluation.
    """
    same = {**twins, **{other: mine for both in pairs.values() for mine, other in both}}
    for path, both in pairs.items():
        read = [(_read(mine), _read(other)) for mine, other in both]
        ours, theirs = (each.returned.get(path, []) for each in (evaluated, trained))
        if len(ours) != len(theirs):
            yield path
            continue
        handed_in: dict[fx.Node, fx.Node] = {}
        for mine, other in (*read, *zip(ours, theirs, strict=True)):
            if not _same(evaluated, mine, other, same, handed_in):
                yield path
                break


def _same(
    evaluated: TracedModel,
    mine: Sequence[fx.Node],
    other: Sequence[fx.Node],
    same: Mapping[fx.Node, fx.Node],
    handed_in: dict[fx.Node, fx.Node],
) -> bool:
    """Return whether two lists of values are the same but for what comes from elsewhere.

    A value without a twin is made by a forward that differs; the one that reads it has only to
    read the same in its place each time.
    """
    if len(mine) != len(other):
        return False
    return all(
        (same.get(b) or handed_in.setdefault(b, a)) is a
        for a, b in zip((_plain(evaluated, node) for node in mine), other, strict=True)
    )


def _plain(evaluated: TracedModel, node: fx.Node) -> fx.Node:
    """Return a value as it is without what is computed from it in training only."""
    while node.op == "call_module" and str(node.target) in evaluated.made:
        node = node.all_input_nodes[0]
    return node


def _read(node: fx.Node) -> list[fx.Node]:
    """Return the values that a node reads, in order, each as often as it does."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def nodes_of(result: Any) -> list[fx.Node]:
    """Return the nodes of the values that a forward returns."""
    leaves = tree_leaves(vars(result) if is_dataclass(result) else result)
    plain = (v for v in leaves if isinstance(v, fx.Proxy) and not isinstance(v, fx.proxy.Attribute))
    return [value.node for value in plain]
