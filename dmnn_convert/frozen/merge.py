"""Sub-blocks that always run together, merged: one wide layer in place of several narrow ones.

A value inside a sub-block is whole (the same for all of them), sliced (each holds channels of its
own) or summed (each holds a term). Layers that read whole values run side by side, layers between
keep the channels apart, and the last layer, which reads sliced channels, sums.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from ..channels import class_name, op_name
from ..graph import Carries, known, reduced_dims
from .parts import Part, has_tensors
from .wider import StayApart, channel_wise, norm_of_sum, rows, stacked, summing_layer


@dataclass(frozen=True)
class Whole:
    """A value that all sub-blocks have in common."""


@dataclass(frozen=True)
class Sliced:
    """A value of which each sub-block holds so many channels."""

    counts: tuple[int, ...]


@dataclass(frozen=True)
class Summed:
    """A value of which each sub-block holds a term: `by` sums what `terms` make."""

    by: nn.Module
    terms: tuple[Any, ...]


Kind = Whole | Sliced | Summed


_APART = (Carries.UNCHANGED, Carries.ELEMENTWISE, Carries.AT_FRONT)
"""Operations on one value that treat every channel alike, and apart from the others."""


class Merged(NamedTuple):
    """Parts merged into one, and the kinds of its outputs."""

    part: Part
    outputs: list[Kind]


def merged(parts: Sequence[Part], inputs: Sequence[Kind], *, sums: int) -> Merged | None:
    """Return parts of one structure as one; None if they have to stay apart.

    Args:
        parts: of the sub-blocks; their tensors are not touched.
        inputs: the kinds of their first inputs; further inputs are whole.
        sums: number of outputs, from the first one on, that are summed over the sub-blocks.
    """
    if len({_structure(part) for part in parts}) > 1:
        return None
    try:
        result = _Merger(parts, inputs).run()
    except StayApart:
        return None
    return result if all(isinstance(kind, Summed) for kind in result.outputs[:sums]) else None


def _structure(part: Part) -> tuple[Any, ...]:
    index = {node: i for i, node in enumerate(part.graph.nodes)}
    return tuple(
        (n.op, str(n.target), tuple(index[i] for i in n.all_input_nodes)) for n in part.graph.nodes
    )


class _Merger:
    def __init__(self, parts: Sequence[Part], inputs: Sequence[Kind]) -> None:
        self.parts = parts
        self.rows = list(zip(*(part.graph.nodes for part in parts), strict=True))
        self.graph = fx.Graph()
        self.modules: dict[str, nn.Module] = {}
        self.tensors: dict[str, Tensor] = {}
        self.kinds: dict[fx.Node, Kind] = {}
        self.new: dict[fx.Node, fx.Node] = {}
        self.inputs = list(inputs)
        first = parts[0]
        dense = [n for n in first.graph.nodes if _is_dense(first.modules.get(str(n.target)))]
        self.followed = {n for n in dense if any(_reaches(n, other) for other in dense)}

    def run(self) -> Merged:
        first = self.parts[0]
        for row in self.rows:
            node = row[0]
            if node.op == "output":
                continue
            self.new[node] = self.graph.node_copy(node, self.new.__getitem__)
            self.kinds[node] = self._kind(row)
        outputs = [self.new[node] for node in first.outputs]
        self.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        part = Part(self.graph, self.modules, self.tensors)
        return Merged(part, [self.kinds[n] for n in first.outputs])

    def _kind(self, row: tuple[fx.Node, ...]) -> Kind:
        node = row[0]
        if node.op == "placeholder":
            return self.inputs.pop(0) if self.inputs else Whole()
        if node.op == "call_module":
            return self._module(row)
        if node.op == "get_attr":
            return self._tensor(str(node.target))
        if node.op == "call_method" and node.target == "narrow":
            return self._narrow(row)
        if not all(_alike(node, other) for other in row[1:]):
            raise StayApart
        kinds = [self.kinds[n] for n in node.all_input_nodes]
        if all(isinstance(kind, Whole) for kind in kinds):
            return Whole()
        return self._function(node, kinds)

    def _function(self, node: fx.Node, kinds: list[Kind]) -> Kind:
        sliced = [kind for kind in kinds if isinstance(kind, Sliced)]
        if len(sliced) != len(kinds) or len({kind.counts for kind in sliced}) != 1:
            raise StayApart
        carries = known(op_name(node)).carries
        if carries is Carries.REDUCED and _over_places(node) and len(kinds) == 1:
            return sliced[0]
        if carries not in (_APART if len(kinds) == 1 else (Carries.ELEMENTWISE,)):
            raise StayApart
        return sliced[0]

    def _tensor(self, name: str) -> Kind:
        first, *others = (part.tensors[name] for part in self.parts)
        if not all(torch.equal(first, other) for other in others):
            raise StayApart
        self.tensors[name] = first
        return Whole()

    def _narrow(self, row: tuple[fx.Node, ...]) -> Kind:
        """Read neighbouring runs of channels of a whole value as one run."""
        node = row[0]
        runs = [(n.args[2], n.args[3]) for n in row]
        if not isinstance(self.kinds[node.all_input_nodes[0]], Whole):
            raise StayApart
        if any(a + n != b for (a, n), (b, _) in itertools.pairwise(runs)):  # type: ignore[operator]
            raise StayApart
        counts = tuple(int(n) for _, n in runs)  # type: ignore[arg-type]
        self.new[node].args = (*self.new[node].args[:2], runs[0][0], sum(counts))
        return Sliced(counts)

    # --- layers -------------------------------------------------------------------------------

    def _module(self, row: tuple[fx.Node, ...]) -> Kind:
        node = row[0]
        name = str(node.target)
        layers = [part.modules[name] for part in self.parts]
        read = node.all_input_nodes
        if len({type(layer) for layer in layers}) > 1 or len(read) != 1 or name in self.modules:
            if name in self.modules and not has_tensors(layers[0]):
                return self._apart(layers[0], self.kinds[read[0]])
            raise StayApart
        kind = self.kinds[read[0]]
        if _is_dense(layers[0]):
            self.modules[name], kind = self._dense(node, layers, kind)
        elif isinstance(kind, Summed):
            self.modules[name] = self._normed(layers, kind, read[0])
        elif has_tensors(layers[0]):
            self.modules[name] = _sliced(layers, kind)
        else:
            kind = self._apart(layers[0], kind)
            self.modules[name] = copy.deepcopy(layers[0])
        return kind

    def _apart(self, layer: nn.Module, kind: Kind) -> Kind:
        # A norm without tensors warns of another number of channels.
        alike = known(class_name(layer)).carries in _APART and not hasattr(layer, "num_features")
        if isinstance(kind, Whole) or alike:
            if isinstance(kind, Summed) and not isinstance(layer, nn.Identity):
                raise StayApart
            return kind
        raise StayApart

    def _dense(self, node: fx.Node, layers: list[Any], kind: Kind) -> tuple[nn.Module, Kind]:
        grouped = getattr(layers[0], "groups", 1) > 1
        if isinstance(kind, Whole) and not grouped:
            return stacked(layers, 1), Sliced(tuple(map(rows, layers)))
        if not isinstance(kind, Sliced):
            raise StayApart
        if grouped or (node in self.followed and isinstance(layers[0], _ConvNd)):
            if len({(rows(x) // x.groups, x.weight.shape[1]) for x in layers}) > 1:
                raise StayApart
            groups = sum(layer.groups for layer in layers)
            return stacked(layers, groups), Sliced(tuple(map(rows, layers)))
        if node in self.followed:
            raise StayApart
        layer = summing_layer(layers)
        return layer, Summed(layer, tuple(layers))

    def _normed(self, layers: list[Any], kind: Summed, read: fx.Node) -> nn.Module:
        if len(read.users) > 1:  # another reader would see the rescaled sum
            raise StayApart
        return norm_of_sum(layers, kind.by, kind.terms)


def _sliced(layers: list[Any], kind: Kind) -> nn.Module:
    if not isinstance(kind, Sliced):
        raise StayApart
    return channel_wise(layers, kind.counts)


def _is_dense(module: nn.Module | None) -> bool:
    return isinstance(module, _ConvNd | nn.Linear)


def _reaches(node: fx.Node, other: fx.Node) -> bool:
    """Return whether a value flows from one node into another one."""
    seen, waiting = set(), list(node.users)
    while waiting:
        user = waiting.pop()
        if user is other:
            return True
        if user not in seen:
            seen.add(user)
            waiting += user.users
    return False


def _alike(node: fx.Node, other: fx.Node) -> bool:
    """Return whether two calls have the same constants."""

    def constants(n: fx.Node) -> list[Any]:
        found: list[Any] = []
        fx.node.map_aggregate((n.args, n.kwargs), lambda a: found.append(_constant(a)))
        return found

    return bool(constants(node) == constants(other))


def _constant(value: Any) -> Any:
    return None if isinstance(value, fx.Node) else repr(value)


def _over_places(node: fx.Node) -> bool:
    """Return whether a reduction of maps leaves batch and channels alone."""
    return set(reduced_dims(node) or ()) in ({2, 3}, {-1, -2})
