"""Functions that make or join tensors, whose traced arguments need help to be seen."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves


def makers() -> dict[tuple[Any, str], Callable[..., Any]]:
    """Return replacements of these functions, which record calls with values of a trace."""
    made = {(torch, name): _made(getattr(torch, name)) for name in _MAKERS}
    return {(torch, "as_tensor"): _taken(torch.as_tensor), **made}


_MAKERS = ("zeros", "ones", "full", "empty", "rand", "randn", "arange", "linspace", "eye")


def _made(original: Callable[..., Any]) -> Callable[..., Any]:
    def answer(*args: Any, **kwargs: Any) -> Any:
        found = [a for a in tree_leaves((args, kwargs)) if isinstance(a, fx.Proxy)]
        if not found:
            return original(*args, **kwargs)
        return found[0].tracer.create_proxy("call_function", original, args, kwargs)

    return answer


def _taken(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that leaves a value of a trace as it is, or gives it the type asked for."""

    def answer(data: Any, dtype: Any = None, device: Any = None) -> Any:
        if not isinstance(data, fx.Proxy):
            return original(data, dtype=dtype, device=device)
        named = {k: v for k, v in (("dtype", dtype), ("device", device)) if v is not None}
        return data.to(**named) if named else data

    return answer


_OVERLOOKED = (
    *("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn"),
    *("randperm", "tensor", "zeros"),
    *("block_diag", "cat", "concat", "concatenate", "column_stack", "dstack", "hstack"),
    *("row_stack", "stack", "vstack"),
)
"""Functions in whose arguments PyTorch overlooks traced values, as releases up to 2.6 do.

They take sizes, a dtype or a device of a value, or a tuple of values that is one value.
"""


@functools.cache
def overlooked_functions() -> tuple[Callable[..., Any], ...]:
    """Return the functions to wrap while a model is traced: none if PyTorch sees to it."""
    try:
        # No integer, which the annotation asks for, but a value of a trace in its place.
        torch.zeros((fx.Proxy(fx.Graph().placeholder("size")),))  # type: ignore[arg-type]
    except TypeError:
        return tuple(getattr(torch, name) for name in _OVERLOOKED)
    return ()


def holders_overlooked() -> list[ModuleType]:
    """Return the modules that hold these functions, where they are replaced."""
    return [torch] if overlooked_functions() else []
