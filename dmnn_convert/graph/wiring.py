"""Forwards whose operations are the same in training and in evaluation, but read other values.

``return z if self.training else y`` issues the same nodes in both modes. What differs is which of
them an operation, or the caller, is given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
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
    differing = set(evaluated.unstable)
    for path in sorted(pairs, key=lambda path: -path.count(".")):  # what is inside first
        read = [(_read(mine), _read(other)) for mine, other in pairs[path]]
        ours, theirs = (each.returned.get(path, []) for each in (evaluated, trained))
        twins_of = _Twins(evaluated, same, differing - {path})
        alike = len(ours) == len(theirs) and all(
            twins_of.are_alike(mine, other)
            for mine, other in (*read, *zip(ours, theirs, strict=True))
        )
        if not alike:
            differing.add(path)
            yield path


class _Twins:
    """The values in evaluation that stand for those that one forward reads in training.

    Args:
        evaluated: the graph of evaluation.
        same: nodes in training -> the same in evaluation.
        differing: modules that do something else in training. What these make has no twin: each
            time that it is read, the same value has to stand in its place.
    """

    def __init__(
        self, evaluated: TracedModel, same: Mapping[fx.Node, fx.Node], differing: Collection[str]
    ) -> None:
        self.evaluated, self.same, self.differing = evaluated, same, differing
        self.handed_in: dict[fx.Node, fx.Node] = {}

    def are_alike(self, mine: Sequence[fx.Node], other: Sequence[fx.Node]) -> bool:
        """Return whether two lists of values are the same."""
        plain = _plain(self.evaluated, mine)
        pairs = zip(plain, other, strict=True) if len(mine) == len(other) else ()
        return len(mine) == len(other) and all(self._twin(b, a) is a for a, b in pairs)

    def _twin(self, other: fx.Node, mine: fx.Node) -> fx.Node:
        known = None if _owner(other) in self.differing else self.same.get(other)
        return self.handed_in.setdefault(other, mine) if known is None else known


def _owner(node: fx.Node) -> str:
    return str(node.meta["key"][0]) if "key" in node.meta else ""


def _plain(evaluated: TracedModel, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Return values as they are without what is computed from them in training only."""
    found: list[fx.Node] = []
    for node in nodes:
        while node.op == "call_module" and str(node.target) in evaluated.made:
            node = node.all_input_nodes[0]
        found.append(node)
    return found


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
