"""Functions in whose arguments PyTorch overlooks traced values, as releases up to 2.6 do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import fx

_NAMES = (
    *("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn"),
    *("randperm", "tensor", "zeros"),
    *("block_diag", "cat", "concat", "concatenate", "column_stack", "dstack", "hstack"),
    *("row_stack", "stack", "vstack"),
)
"""They take sizes, a dtype or a device of a value, or a tuple of values that is one value."""


@functools.cache
def overlooked() -> tuple[Callable[..., Any], ...]:
    """Return the functions to wrap while a model is traced: none if PyTorch sees to it."""
    try:
        torch.zeros((fx.Proxy(fx.Graph().placeholder("size")),))  # type: ignore[arg-type]
    except TypeError:
        return tuple(getattr(torch, name) for name in _NAMES)
    return ()


def holders_overlooked() -> list[ModuleType]:
    """Return the modules that hold these functions, where they are replaced."""
    return [torch] if overlooked() else []
