"""Operations in place: those that write into their input, and those known not to."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd, _MaxPoolNd
from torchvision.ops import FrozenBatchNorm2d

from ..graph import TracedModel
from ..nn import MultiPathBlock
from .activation import activation_of
from .layer import does_nothing

_MAKERS: tuple[type, ...] = (
    *(_ConvNd, _BatchNorm, nn.Linear, nn.GroupNorm, nn.LayerNorm, BatchNormAct2d),
    *(_AdaptiveAvgPoolNd, _AvgPoolNd, _MaxPoolNd, FrozenBatchNorm2d, MultiPathBlock),
)


"""Modules that give a tensor of their own, and leave what they read alone."""


_PURE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    torch.relu_: torch.relu,
    "add_": "add",
    "mul_": "mul",
    "relu_": "relu",
}


"""What gives the same as an operation that writes, in a tensor of its own."""


_FUNCTIONS = (
    *(operator.add, operator.mul, torch.add, torch.mul, torch.cat, torch.relu, F.conv2d),
    *(F.relu, F.relu6, F.silu, F.hardswish, F.adaptive_avg_pool2d, F.avg_pool2d, F.max_pool2d),
    *("add", "mul", "relu", "mean"),
)


"""The same for functions and methods."""


def writes(trace: TracedModel, node: fx.Node) -> bool:
    """Return whether a node writes into what it reads, or may do so."""
    if node.op == "call_module":
        module = trace.module(node)
        if does_nothing(module):
            return False
        return bool(getattr(module, "inplace", False)) or not _known(module)
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    marked = name.endswith("_") and not name.endswith("__")
    in_operator = getattr(node.target, "__module__", "") == "_operator" and name in _IN_OPERATOR
    flagged = bool(node.kwargs.get("inplace")) or any(a is True for a in node.args)
    return marked or in_operator or flagged or "out" in node.kwargs or name == "setitem"


_LIBRARIES = ("torch", "torchvision", "timm", __package__.partition(".")[0])


_IN_OPERATOR = ("iadd", "isub", "imul", "itruediv", "ior", "iand", "ipow", "setitem")


def _known(module: nn.Module | None) -> bool:
    """Return whether a module is a library's and nothing inside it writes into what it reads."""
    if isinstance(module, (MultiPathBlock, BatchNormAct2d)):
        # A block that overwrites its input is never converted; the other's activation overwrites
        # what its norm has made.
        return True
    library = type(module).__module__.partition(".")[0] in _LIBRARIES
    inner = () if module is None else list(module.modules())[1:]
    return library and not any(getattr(m, "inplace", False) for m in inner)


def makes_its_own(trace: TracedModel, node: fx.Node) -> bool:
    """Return whether a node leaves what it reads alone and gives a tensor of its own."""
    if writes(trace, node):
        return False
    if node.op == "call_module":
        module = trace.module(node)
        return isinstance(module, _MAKERS) or (module is not None and bool(activation_of(module)))
    return node.target in _FUNCTIONS


def without_writes(trace: TracedModel) -> bool:
    """Let every operation that writes give a tensor of its own instead; return whether all do.

    That changes nothing where nobody else reads what is written, which must itself be a tensor of
    its own. Where anything else is written, nothing is changed.
    """
    nodes = [node for node in trace.graph.nodes if writes(trace, node)]
    fresh: set[fx.Node] = set()
    for node in nodes:
        written = _written(trace, node)
        if written is None or not node.users:
            return False
        if not (written in fresh or makes_its_own(trace, written)) or not _has_pure(trace, node):
            return False
        fresh.add(node)
    for node in nodes:
        _purify(trace, node)
    return True


def _written(trace: TracedModel, node: fx.Node) -> fx.Node | None:
    """Return what a node writes into, if nobody else reads it; None otherwise."""
    written = node.args[0] if node.args else None
    while isinstance(written, fx.Node) and list(written.users) == [node]:
        if not does_nothing(trace.module(written)):
            return written
        node, written = written, written.args[0] if written.args else None
    return None


def _has_pure(trace: TracedModel, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = trace.module(node)
        return _known(module)
    return node.target in _PURE or bool(node.kwargs.get("inplace"))


def _purify(trace: TracedModel, node: fx.Node) -> None:
    if node.op == "call_module":
        # A node that calls a module has one.
        trace.module(node).inplace = False  # type: ignore[union-attr]
    elif node.target in _PURE:
        node.target = _PURE[node.target]
    else:
        node.kwargs = {**node.kwargs, "inplace": False}


def all_leave_alone(trace: TracedModel, readers: Iterable[fx.Node]) -> bool:
    """Return whether nothing that reads a value writes into it or hands it on."""
    return all(makes_its_own(trace, reader) for reader in readers)
