"""The values of a trace, which record every write that a forward makes into them.

torch.fx's own proxies do not support ``+=``: Python then adds and rebinds the name, and no other
reference to the tensor sees the write. Here ``x += y``, ``x[i] = y`` and the like become nodes, in
order.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from .dims import is_size
from .questions import NEVER, Questioned, QuestionedAttribute, check_attribute

IN_PLACE = {
    getattr(operator, name): getattr(operator, plain)
    for name, plain in (
        *(("iadd", "add"), ("isub", "sub"), ("imul", "mul"), ("itruediv", "truediv")),
        *(("ifloordiv", "floordiv"), ("imod", "mod"), ("ipow", "pow"), ("iand", "and_")),
        *(("ior", "or_"), ("ixor", "xor"), ("ilshift", "lshift"), ("irshift", "rshift")),
    )
    if hasattr(torch.Tensor, f"__{name}__")
}
"""Operators that write into their left side -> the same without the write."""


class _Written:
    """In-place operators and item assignment; setting attributes, which would be lost, fails."""

    tracer: Any
    node: fx.Node

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OWN:
            raise fx.proxy.TraceError(f"sets the attribute {name!r} of a tensor")
        object.__setattr__(self, name, value)


_OWN = ("tracer", "node", "root", "attr", "_node")


def _recorded(target: Any) -> Any:
    def write(self: Any, other: Any) -> Any:
        # A size is a number, which += cannot write into.
        used = IN_PLACE[target] if is_size(self.node) else target
        return self.tracer.create_proxy("call_function", used, (self, other), {})

    return write


for _target in IN_PLACE:
    setattr(_Written, f"__{_target.__name__}__", _recorded(_target))


class TracedValue(_Written, Questioned):
    """A value of a trace."""

    def __getattr__(self, name: str) -> Any:
        check_attribute(self, name)
        return False if name in NEVER else TracedAttribute(self, name)


class TracedAttribute(_Written, QuestionedAttribute):
    """An attribute of a value, or a method about to be called."""

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        """Return its node, which is made when it is first read.

        A forward that cannot be traced after all may have been the first to read it.
        """
        if self._node is not None and self._node._erased:
            self._node = None
        return super().node

    def __getattr__(self, name: str) -> TracedAttribute:
        check_attribute(self, name)
        return TracedAttribute(self, name)
