"""Operations of the user's own, whose facts the user vouches for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.library import CustomOpDef  # type: ignore[attr-defined]

from ..errors import ArgumentError
from ..text import shown
from .libraries import is_library_layer
from .operations import PER_IMAGE, PRODUCT, UNKNOWN, known, teach
from .rule import Carries, Role, Rule

KINDS: dict[str, Rule] = {
    "pointwise": replace(PRODUCT, pointwise=True, shares=True),
    "channelwise": replace(PER_IMAGE, role=Role.CHANNELWISE, carries=Carries.AT_FRONT, shares=True),
    "per-image": replace(PER_IMAGE, shares=True),
}
"""What can be vouched for. What a result's memory is, nobody promises."""

_NAMES: dict[Any, str] = {}
"""A function, an operator or a class -> the name of its row; no name in code looks like one."""


def register_operation(operation: Callable[..., Any] | type[nn.Module], kind: str) -> None:
    """Vouch for an operation of your own, so that blocks that hold it can be split.

    The library takes nothing about an operation for granted that it does not know: a block that
    holds one stays dense. A forward in plain PyTorch needs no word from you, because it is followed
    to the operations that it is made of; this is for what cannot be followed, such as a custom
    operator, a function that branches on values, or a kernel's module. For the whole process, also
    where a saved network is loaded again: register first, then load.

    The operation must return one tensor, write into none that it is given, and draw nothing at
    random. `dynamize` tries it all the same: a block whose output changes, or in which an image
    depends on the others, stays dense with a warning.

    Args:
        operation: a function, a custom operator (`torch.library.custom_op`, one of `torch.ops`), a
            PyTorch function that is not known yet, or a class of modules, of which subclasses are
            not meant. It is left whole where a forward calls it by its name.
        kind: "pointwise": each value of the result depends on what stands at the same place of the
            inputs, with broadcasting, as in an activation. "channelwise": channels stand in
            dimension 1 of (B, C, ...), and each depends on the same channel of the one input, as
            in a pool; a module's tensors with C entries belong to one channel each. "per-image":
            each image's result depends on that image alone; it is computed whole, and sub-blocks
            share it.

    Raises:
        ArgumentError: for another kind, for what cannot be an operation or is known already.

    Example:
        >>> import torch
        >>> import dmnn_convert
        >>> def clipped(x):  # branches on a value, which no trace can follow
        ...     return x.clamp(max=6) if x.max() > 6 else x
        >>> dmnn_convert.register_operation(clipped, "pointwise")
    """
    if not isinstance(kind, str) or kind not in KINDS:
        raise ArgumentError(
            f"register_operation(kind={shown(kind)}): choose one of {', '.join(map(repr, KINDS))}."
        )
    _check(operation)
    if _is_torch(operation):
        teach(str(operation.__name__), KINDS[kind])  # methods go by the same name
        return
    subject = _packet(operation)
    _NAMES[subject] = f"<{subject.__module__}.{_name(subject)}>"
    teach(_NAMES[subject], KINDS[kind])


def vouched(target: Any) -> str:
    """Return the name of the row of what a node calls, if the user vouches for it; else ""."""
    if not _NAMES or isinstance(target, str):
        return ""
    return _NAMES.get(_packet(target), "")


def vouched_functions() -> tuple[Callable[..., Any], ...]:
    """Return the functions that a trace must leave whole."""
    return tuple(what for what in _NAMES if inspect.isfunction(what))


def _packet(operation: Any) -> Any:
    """Return an operator for all its overloads; anything else as it is."""
    if isinstance(operation, CustomOpDef):
        operation = operation._opoverload
    return operation.overloadpacket if isinstance(operation, OpOverload) else operation


def _name(operation: Any) -> str:
    return str(getattr(operation, "__qualname__", operation.__name__))


def _home(operation: Any) -> str:
    return str(getattr(operation, "__module__", None) or "torch")


def _is_torch(operation: Any) -> bool:
    return _home(operation).partition(".")[0] == "torch" and not isinstance(
        _packet(operation), OpOverloadPacket
    )


def _check(operation: Any) -> None:
    call = f"register_operation({shown(operation)})"
    if isinstance(operation, nn.Module):
        raise ArgumentError(f"{call}: got a module; give its class, {type(operation).__name__}.")
    if isinstance(operation, type):
        if not issubclass(operation, nn.Module):
            raise ArgumentError(
                f"{call}: expected a subclass of nn.Module; give the function that it is for."
            )
        if is_library_layer(operation):
            raise ArgumentError(f"{call}: a library's own class is not yours to vouch for.")
        return
    if not callable(operation):
        raise ArgumentError(f"{call}: expected a function, an operator or a class of modules.")
    if isinstance(_packet(operation), OpOverloadPacket):
        if _home(_packet(operation)) == "torch._ops.aten":
            raise ArgumentError(f"{call}: give PyTorch's function rather than its operator.")
        return
    name = getattr(operation, "__name__", "")
    if not inspect.isroutine(operation) or name == "<lambda>" or inspect.ismethod(operation):
        raise ArgumentError(f"{call}: a forward must call it by a name; define it with def.")
    if _is_torch(operation) and known(name) != UNKNOWN and known(name) not in KINDS.values():
        raise ArgumentError(f"{call}: {name} is known already, and converts where it can.")
