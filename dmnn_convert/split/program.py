"""Modules made of a run of graph nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..channels import Layout, batch_norm_arguments, channel_count, group_norm_arguments
from ..graph import (
    TracedModel,
    copied,
    give_forward,
    is_batch_size,
    is_constant,
    is_size,
    owner,
    plain,
    weight_read,
)
from ..nn import AnyBatchNorm, note_steps


def as_module(traced: TracedModel, node: fx.Node) -> nn.Module | None:
    """Return the module that a node calls, with a functional norm as its module."""
    if node.target is F.batch_norm:
        return _batch_norm(traced, node)
    if node.target is F.group_norm:
        return _group_norm(traced, node)
    return traced.module(node)


def _group_norm(traced: TracedModel, node: fx.Node) -> nn.Module | None:
    arguments = group_norm_arguments(node)
    channels = channel_count(traced, node)
    if arguments is None or channels is None or arguments["num_groups"] == 1:
        return None  # of one group nothing is shared out
    affine = arguments["weight"] is not None
    norm = nn.GroupNorm(arguments["num_groups"], channels, arguments["eps"], affine=affine)
    norm.train(traced.root.get_submodule(owner(node)).training)
    if affine:
        _set_tensors(norm, **{n: traced.attribute(arguments[n]) for n in ("weight", "bias")})
    return norm


def _set_tensors(norm: nn.Module, **tensors: Any) -> None:
    for name, value in tensors.items():
        if isinstance(value, nn.Parameter):
            setattr(norm, name, value)
        else:
            delattr(norm, name)
            norm.register_buffer(name, value)


def _batch_norm(traced: TracedModel, node: fx.Node) -> nn.Module | None:
    arguments = batch_norm_arguments(node)
    if arguments is None:
        return None
    mean, var, weight, bias = (
        traced.attribute(arguments[name])
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    norm = AnyBatchNorm(len(mean), eps=arguments["eps"], momentum=arguments["momentum"])
    norm.to(mean.device).train(traced.root.get_submodule(owner(node)).training)
    _set_tensors(norm, weight=weight, bias=bias)
    norm.running_mean, norm.running_var = mean, var
    return norm


def local_name(node: fx.Node, enclosing: str) -> str:
    """Return the name that a node's module has inside a program."""
    target = str(node.target) if node.op == "call_module" else _read_name(node)
    return target.removeprefix(f"{enclosing}.") if enclosing else target


def _read_name(node: fx.Node) -> str:
    """Return the name of a function that stands for a layer: its holder's, or its weight's."""
    arguments = batch_norm_arguments(node) or group_norm_arguments(node)
    weight = arguments["weight"] if arguments else None
    path = weight_read(node) if arguments is None else str(getattr(weight, "target", ""))
    holder, _, name = path.rpartition(".")
    return (holder if name == "weight" else path) or node.name


class Program:
    """A module in the making that runs graph nodes on given values.

    Its state_dict keys are the source's, relative to the enclosing module.

    Args:
        traced: the model that holds the nodes.
        enclosing: path of the module that names are relative to.
        inputs: the values that its forward takes, in order.
    """

    def __init__(self, traced: TracedModel, enclosing: str, inputs: Sequence[fx.Node]) -> None:
        self.traced, self.enclosing = traced, enclosing
        self.result = nn.Module()
        self.result.training = traced.root.get_submodule(enclosing).training
        self.copying: set[fx.Node] = set()
        self.graph = fx.Graph()
        names = ["x"] if len(inputs) == 1 else [f"x{i}" for i in range(len(inputs))]
        self.values = {
            node: self.graph.placeholder(name) for node, name in zip(inputs, names, strict=True)
        }

    def narrow(self, node: fx.Node, layout: Layout, channels: Tensor) -> fx.Node:
        """Take some channels of a value: the same run of each of its segments."""
        value, dim, parts = self.values[node], layout.dim, layout.segments
        start, length = int(channels[0]), len(channels) // parts
        if parts == 1:
            return self.graph.call_method("narrow", (value, dim, start, length))
        parted = self.graph.call_method("unflatten", (value, dim, (parts, layout.count // parts)))
        first, last = (dim, dim + 1) if dim >= 0 else (dim - 1, dim)
        runs = self.graph.call_method("narrow", (parted, last, start, length))
        return self.graph.call_method("flatten", (runs, first, last))

    def scale(self, node: fx.Node, factor: float) -> None:
        """Multiply a value by a number."""
        self.values[node] = self.graph.call_function(operator.mul, (self.values[node], factor))

    def writes_outside(self, nodes: Sequence[fx.Node]) -> Iterator[fx.Node]:
        """Yield the nodes that would write, in place, into a value that others read as well."""
        memory = self.traced.memory
        for node in nodes:
            seen = "unseen" not in node.meta  # else it writes nothing here
            if seen and any(place.root not in nodes for place in memory.written(node)):
                yield node

    def copy_before(self, node: fx.Node) -> None:
        """Let a node that writes into its first input write into a copy of it."""
        self.copying.add(node)

    def run(
        self,
        nodes: Sequence[fx.Node],
        modules: Mapping[fx.Node, nn.Module],
        read: Callable[[fx.Node, fx.Node], fx.Node | None] = lambda reader, node: None,
        constant: Callable[[fx.Node, Any], Any] = lambda node, value: value,
    ) -> None:
        """Append nodes.

        Args:
            nodes: in graph order; sizes and constants that they read come along.
            modules: modules to call instead of the model's own.
            read: returns the replacement of a value for a reader, if there is one.
            constant: returns the replacement of a tensor of the model.
        """
        for node in nodes:
            inputs = {
                source: read(node, source) or self._value(source, constant)
                for source in node.all_input_nodes
                if node not in modules or source.op != "get_attr"
            }
            if node in self.copying:
                first = node.all_input_nodes[0]
                inputs[first] = self.graph.call_method("clone", (inputs[first],))
            if node in modules:
                name = local_name(node, self.enclosing)
                place(self.result, name, modules[node])
                self.values[node] = self._call(node, name, inputs)
            else:
                self.values[node] = self.graph.node_copy(node, inputs.__getitem__)

    def _call(self, node: fx.Node, name: str, inputs: Mapping[fx.Node, fx.Node]) -> fx.Node:
        if node.op != "call_module":  # a function, whose tensors its module holds
            return self.graph.call_module(name, tuple(inputs.values()))
        call = self.graph.node_copy(node, inputs.__getitem__)
        call.target = name
        return call

    def _value(self, node: fx.Node, constant: Callable[[fx.Node, Any], Any]) -> fx.Node:
        if node in self.values:
            return self.values[node]
        if is_batch_size(node) and node.meta.get("context"):
            first = next(iter(self.values.values()))
            return self.graph.call_method("size", (first, 0))
        if node.op == "get_attr":
            self.values[node] = self._carry_over(node, constant(node, self.traced.attribute(node)))
        elif is_size(node) or is_constant(node):
            inputs = {source: self._value(source, constant) for source in node.all_input_nodes}
            self.values[node] = self._call_own(node, inputs)
        return self.values[node]

    def _call_own(self, node: fx.Node, inputs: Mapping[fx.Node, fx.Node]) -> fx.Node:
        module = self.traced.module(node) if node.op == "call_module" else None
        if module is None:
            return self.graph.node_copy(node, inputs.__getitem__)
        name = local_name(node, self.enclosing)
        place(self.result, name, sharing_copy(module))
        return self._call(node, name, inputs)

    def _carry_over(self, read: fx.Node, value: Any) -> fx.Node:
        prefix = f"{self.enclosing}." if self.enclosing else ""
        name = str(read.target).removeprefix(prefix).replace(".", "_")
        if isinstance(value, nn.Parameter):
            self.result.register_parameter(name, value)
        else:
            self.result.register_buffer(name, value)
        return self.graph.create_node("get_attr", name)

    def finish(self, outputs: Sequence[fx.Node]) -> nn.Module:
        """Return the module, whose forward gives the value of `outputs`; several as a tuple."""
        given = tuple(self.values[node] for node in outputs)
        self.graph.output(given[0] if len(given) == 1 else given)
        for node in self.graph.nodes:  # attributes of the model do not belong to this module
            node.args, node.kwargs = plain(node.args), plain(node.kwargs)
        give_forward(self.result, self.graph)
        note_steps(self.result, self.graph)
        return self.result


def sharing_copy(module: nn.Module) -> nn.Module:
    """Copy a module whose parameters stay the model's own."""
    return copied(module, {id(p): p for p in module.parameters()})


def place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a path, with empty modules on the way to it."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module().train(root.training))
        root = root.get_submodule(parent)
    # A functional norm stands for the module that holds its tensors, which may hold layers too.
    standing = root._modules.get(name)
    for child, held in () if standing is None else standing._modules.items():
        if child not in module._modules:
            module.add_module(child, held)
    root.add_module(name, module)
