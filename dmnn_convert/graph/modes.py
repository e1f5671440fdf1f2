"""The modules whose mode a forward reads: its own, which ``self.training`` tells, or another's."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import fx, nn

from .attributes import mentioned, methods
from .traced import TRAINING, owner


@functools.cache
def reads_other_modes(cls: type) -> bool:
    """Return whether a class's forward, or a method that it mentions, reads another's mode.

    A trace in one mode and one in the other show that a value depends on a mode, not on whose.
    """
    functions = (f for name in mentioned(cls) for f in methods(cls, name))
    return any(_reads_anothers(function.__code__, _first(function)) for function in functions)


def _first(function: types.FunctionType) -> str:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return names[0] if names else ""


def _reads_anothers(code: types.CodeType, own: str) -> bool:
    before: Any = ""
    for step in dis.get_instructions(code):
        if step.opname == "LOAD_ATTR" and step.argval == "training" and before != own:
            return True
        named = step.opname.startswith(("LOAD_FAST", "LOAD_DEREF"))
        before = step.argval if named else ""
        before = before[-1] if isinstance(before, tuple) else before
    return any(_reads_anothers(c, own) for c in code.co_consts if isinstance(c, types.CodeType))


def depends_on_mode(node: fx.Node) -> bool:
    """Return whether a node is handed the mode of the module that issued it."""
    found: list[Any] = []
    fx.node.map_aggregate((node.args, node.kwargs), found.append)
    return TRAINING in found


def with_a_mode_of_its_own(
    module: nn.Module, nodes: Iterable[fx.Node], called: Iterable[str]
) -> Iterator[str]:
    """Yield those of the modules inside that need not be in the mode that the module is in.

    Args:
        module: runs all nodes in one forward.
        nodes: what that runs.
        called: the modules inside whose forwards are a part of it.
    """
    asked = {owner(node) for node in nodes if depends_on_mode(node)}
    for path in filter(None, called):
        inner = module.get_submodule(path)
        differs = path in asked and inner.training != module.training
        if differs or type(inner).train is not nn.Module.train:
            yield path


class _ModeOf:
    """Stands for the mode of a module inside; generated code prints its repr."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __repr__(self) -> str:
        held = "".join(f"._modules[{part!r}]" for part in self.path.split("."))
        return f"self{held}.training"


def let_each_read_its_own(graph: fx.Graph, there: Collection[str]) -> None:
    """Let nodes in one forward read the mode of the module that issued them.

    Args:
        graph: the forward.
        there: the modules inside that are still there.
    """
    for node in graph.nodes:
        if "key" in node.meta and owner(node) in there and owner(node) and depends_on_mode(node):
            flag = _ModeOf(owner(node))
            put = functools.partial(_put, flag)
            node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), put)


def _put(flag: _ModeOf, argument: Any) -> Any:
    return flag if argument is TRAINING else argument
