"""Make a module out of a run of graph nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..generated import give_forward
from ..ops import batch_norm_arguments
from ..trace import Trace, owner


def as_module(traced: Trace, node: fx.Node) -> nn.Module | None:
    """Return the module that a node calls, with a functional batch norm as its module."""
    if node.op == "call_function" and node.target is F.batch_norm:
        return _batch_norm(traced, node)
    return traced.module(node)


class _AnyBatchNorm(nn.BatchNorm2d):
    """A batch norm for any number of dimensions, as the functional one."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def _batch_norm(traced: Trace, node: fx.Node) -> nn.Module | None:
    arguments = batch_norm_arguments(node)
    if arguments is None:
        return None
    mean, var, weight, bias = (
        _attribute(traced.root, arguments[name])
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    norm = _AnyBatchNorm(len(mean), eps=arguments["eps"], momentum=arguments["momentum"])
    norm.to(mean.device).train(traced.root.get_submodule(owner(node)).training)
    norm.weight, norm.bias = weight, bias
    norm.running_mean, norm.running_var = mean, var
    return norm


def _attribute(root: nn.Module, node: fx.Node) -> nn.Parameter:
    value = root
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value  # type: ignore[return-value]


def local_name(node: fx.Node, enclosing: str) -> str:
    """Return the name that a node's module has inside a program."""
    target = str(node.target) if node.op == "call_module" else _norm_name(node)
    return target.removeprefix(f"{enclosing}.") if enclosing else target


def _norm_name(node: fx.Node) -> str:
    arguments = batch_norm_arguments(node)
    path = str(arguments["weight"].target).rpartition(".")[0] if arguments else ""
    return path or node.name


def program(
    traced: Trace,
    nodes: Sequence[fx.Node],
    entry: fx.Node,
    modules: Mapping[fx.Node, nn.Module],
    enclosing: str,
) -> nn.Module:
    """Return a module that runs `nodes` on the value of `entry`, with the given modules.

    Its state_dict keys are the source's, relative to the enclosing module.
    """
    result = nn.Module()
    graph = fx.Graph()
    values = {entry: graph.placeholder("x")}
    for node in nodes:
        if node in modules:
            name = local_name(node, enclosing)
            _place(result, name, modules[node])
            given = [a for a in node.all_input_nodes if a.op != "get_attr"]
            values[node] = graph.call_module(name, tuple(values[a] for a in given))
            continue
        for read in (n for n in node.all_input_nodes if n.op == "get_attr" and n not in values):
            values[read] = _carry_over(traced, result, graph, read, enclosing)
        values[node] = graph.node_copy(node, values.__getitem__)
    graph.output(values[nodes[-1]])
    result.training = traced.root.get_submodule(enclosing).training
    give_forward(result, graph)
    return result


def _carry_over(
    traced: Trace, result: nn.Module, graph: fx.Graph, read: fx.Node, enclosing: str
) -> fx.Node:
    value = _attribute(traced.root, read)
    name = str(read.target).removeprefix(f"{enclosing}." if enclosing else "").replace(".", "_")
    if isinstance(value, nn.Parameter):
        result.register_parameter(name, value)
    else:
        result.register_buffer(name, value)
    return graph.create_node("get_attr", name)


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, module)
