"""Pieces of a multi-path block as graphs, and their insertion into another graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from ..graph import retrace, skeleton, with_plain_numbers


@dataclass
class Part:
    """A run of layers: its graph, and the modules and tensors that the graph uses.

    Attributes:
        graph: one placeholder an input; the output is a value or a tuple of values.
        modules: the layers, by the name that the graph calls them.
        tensors: the tensors, by the name that the graph reads them.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]
    tensors: dict[str, Tensor]

    @property
    def inputs(self) -> list[fx.Node]:
        """The placeholders, in order."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        """The values that the graph returns."""
        value: Any = self.graph.output_node().args[0]
        return tuple(value) if isinstance(value, tuple | list) else (value,)


def part_of(module: nn.Module) -> Part:
    """Return a generated module as a part; its layers and tensors are the module's own."""
    traced = retrace(skeleton(module), frozenset(), None)
    with_plain_numbers(traced.graph)
    modules: dict[str, nn.Module] = {}
    tensors: dict[str, Tensor] = {}
    for node in traced.graph.nodes:
        name = str(node.target)
        if node.op == "call_module":
            modules[name] = module.get_submodule(name)
        elif node.op == "get_attr":
            read = operator.attrgetter(name)
            tensors[name] = traced.attribute(node) if name in traced.constants else read(module)
    return Part(traced.graph, modules, tensors)


class Inliner:
    """A graph that takes in parts, and the module that takes in their layers.

    Args:
        root: gets the layers under the names that they have in their parts, as in the source.
        graph: gets the nodes, before `place`.
        place: a node of the graph.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, place: fx.Node) -> None:
        self.root, self.graph, self.place = root, graph, place

    def add(self, part: Part, inputs: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
        """Append a part's nodes, which read `inputs`; return what it returns."""
        values = dict(zip(part.inputs, inputs, strict=False))
        targets = self._placed(part.modules, _same_layer) | self._placed(
            part.tensors, lambda a, b: a is b
        )
        with self.graph.inserting_before(self.place):
            for node in part.graph.nodes:
                if node.op in ("placeholder", "output"):
                    continue
                values[node] = self.graph.node_copy(node, values.__getitem__)
                if node.op in ("call_module", "get_attr"):
                    values[node].target = targets[str(node.target)]
        return tuple(values[node] for node in part.outputs)

    def sum(self, terms: Sequence[fx.Node]) -> fx.Node:
        """Append the sum of values."""
        total = terms[0]
        with self.graph.inserting_before(self.place):
            for term in terms[1:]:
                total = self.graph.call_function(operator.add, (total, term))
        return total

    def clone(self, value: fx.Node) -> fx.Node:
        """Append a copy of a value."""
        with self.graph.inserting_before(self.place):
            return self.graph.call_method("clone", (value,))

    def _placed(self, found: Mapping[str, Any], same: Callable[[Any, Any], bool]) -> dict[str, str]:
        """Give each layer or tensor a place in the root; return where each one is."""
        places: dict[str, str] = {}
        for name, value in found.items():
            place, number = name, 1
            while (held := _at(self.root, place)) is not None and not same(held, value):
                number += 1
                place = f"{name}_{number}"
            if held is None:
                _put(self.root, place, value)
            places[name] = place
        return places


def _same_layer(held: Any, layer: nn.Module) -> bool:
    """Return whether one layer can stand for another: it is the same, or both hold no tensor."""
    if held is layer:
        return True
    empty = not (has_tensors(layer) or has_tensors(held))
    return empty and type(held) is type(layer) and repr(held) == repr(layer)


def has_tensors(module: nn.Module) -> bool:
    """Return whether a module holds parameters or buffers, saved with it or not."""
    return any(True for _ in (*module.parameters(), *module.buffers()))


def _at(root: nn.Module, path: str) -> Any:
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name, None)
        if value is None:
            return None
    return value


def _put(root: nn.Module, path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    if isinstance(value, nn.Module):
        root.add_module(name, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(name, value)
    else:
        root.register_buffer(name, value)
