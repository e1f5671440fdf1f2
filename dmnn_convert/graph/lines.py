"""The lines of the user's code that a forward is running, for reasons and errors."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import fx

_HERE = os.path.dirname(os.path.dirname(__file__))
_NOT_THE_USERS = (
    *(os.path.dirname(torch.__file__) + os.sep, _HERE + os.sep),
    contextlib.__file__,  # the code behind a ``with``
)


def running_line() -> str:
    """Return "file:line" of the innermost code that is neither torch's nor this package's."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_NOT_THE_USERS) and not name.startswith("<"):
            return f"{os.path.basename(name)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def defined_at(function: Callable[..., Any]) -> str:
    """Return " (file:line)" of a function of the user's, or nothing."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return "" if code is None else users_line(code, code.co_firstlineno)


def users_line(code: CodeType, number: int) -> str:
    """Return " (file:line)" of a line of the user's code, or nothing."""
    if code.co_filename.startswith((*_NOT_THE_USERS, "<")):
        return ""
    return f" ({os.path.basename(code.co_filename)}:{number})"


def with_line(reason: str) -> str:
    """Return a reason with the line that is running, where that is the user's."""
    line = running_line()
    return f"{reason} ({line})" if line else reason


def at_line(node: fx.Node) -> str:
    """Return the node's name and, where it is known, the line that issued it."""
    line = node.meta.get("line")
    return f"{node.name} ({line})" if line else node.name


def located(reason: str, where: fx.Node | Callable[..., Any]) -> str:
    """Return a reason with the line of a node or a function, unless it names a line."""
    line = where.meta.get("line") if isinstance(where, fx.Node) else defined_at(where).strip(" ()")
    named = re.search(r"\w\.\w+:\d", reason) is not None
    return f"{reason} ({line})" if line and not named else reason
