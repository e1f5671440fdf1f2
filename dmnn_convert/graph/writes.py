"""Writes of operations into their arguments, and the memory that their results may share."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from ..nn import MultiPathBlock
from .dims import argument, called, gives_pieces, is_size, subject
from .libraries import WRITING_BY_NAME
from .operations import known
from .proxies import IN_PLACE
from .vouching import vouched

_METHODS = tuple(f"__{target.__name__}__" for target in IN_PLACE)


_NO_WRITES = ("requires_grad_",)


class Effects:
    """The effects of one graph's operations on memory.

    Args:
        module: gives the module that a node calls.
        closed: modules that no trace could follow; a user's own may do anything.
    """

    def __init__(
        self, module: Callable[[fx.Node], nn.Module | None], closed: frozenset[str]
    ) -> None:
        self.module, self.closed = module, closed

    def written(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """Return the values that a node is known to write into."""
        if node.op == "call_module":
            in_place = bool(getattr(self.module(node), "inplace", False))
            return _tensors(_first(node)) if in_place else ()
        if node.op not in ("call_function", "call_method"):
            return ()
        if node.kwargs.get("out") is not None:
            return _tensors(node.kwargs["out"])
        return _tensors(subject(node)) if _writes_first(node) else ()

    def written_and_returned(self, node: fx.Node) -> fx.Node | None:
        """Return the value that a node writes into and, as it is, returns."""
        written = self.written(node)
        if len(written) != 1 or called(node) in ("setitem", "__setitem__"):
            return None
        return written[0] if self.known(node) else None

    def shared(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """Return the inputs whose memory the result of a node that writes nothing may be."""
        if node.op == "call_module":
            kind = type(self.module(node))
            name = vouched(kind) or kind.__name__
        elif node.op in ("call_function", "call_method"):
            name = called(node)
        else:
            return ()
        container = isinstance(node.target, type)
        sharing = container or known(name).shares or not self.known(node)
        return tuple(n for n in node.all_input_nodes if not is_size(n)) if sharing else ()

    def known(self, node: fx.Node) -> bool:
        """Return whether a library's operation is called, whose name says what it does."""
        if node.op == "call_module":
            module = self.module(node)
            plain = is_of_library(type(module)) and str(node.target) not in self.closed
            return isinstance(module, MultiPathBlock) or plain
        return node.op == "call_method" or node.target is getattr or is_of_library(node.target)


def part_taken(node: fx.Node) -> tuple[fx.Node, int] | None:
    """Return (split, i) for the i-th of the parts, which share no memory, of a split tensor."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    source, index = node.args
    if isinstance(source, fx.Node) and type(index) is int and index >= 0:
        return (source, index) if gives_pieces(source) else None
    return None


def _writes_first(node: fx.Node) -> bool:
    name = called(node)
    marked = name in ("setitem", "__setitem__") or name in _METHODS or "unseen" in node.meta
    if marked or node.target in IN_PLACE:
        return True
    if name.endswith("_") and not name.endswith("__") and name not in _NO_WRITES:
        # and_ and the like are operators that write nothing
        return getattr(node.target, "__module__", "") not in ("_operator", "operator")
    place = _place_of_flag(node.target)
    flag = False if place is None else argument(node, place, "inplace")
    return flag is not None and flag is not False


@functools.cache
def _place_of_flag(target: Any) -> int | None:
    """Return which argument of a function is called `inplace`."""
    if isinstance(target, str | type) or not inspect.isroutine(target):
        return None
    try:
        names = list(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


def is_of_library(what: Any) -> bool:
    """Return whether a function or class is one of those libraries' whose code is known."""
    module = getattr(what, "__module__", None) or "torch"
    if module.startswith("torch._ops.") and module != "torch._ops.aten":
        return bool(vouched(what))  # a custom operator
    home = module.partition(".")[0]
    return home in WRITING_BY_NAME or bool(vouched(what))


def _first(node: fx.Node) -> Any:
    return node.args[0] if node.args else next(iter(node.kwargs.values()), None)


def _tensors(value: Any) -> tuple[fx.Node, ...]:
    found: list[fx.Node] = []
    fx.node.map_arg(value, lambda n: found.append(n) or n)  # type: ignore[func-returns-value]
    return tuple(n for n in found if not is_size(n))
