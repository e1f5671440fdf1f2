"""The libraries whose code is known, one list for each thing that is known of it."""

from __future__ import annotations

import sys

_OWN = __package__.partition(".")[0]

LAYER_HOMES = ("torch", "torchvision", "timm", _OWN)
"""Their layers are those that the rows of `operations.py` name; a user's may share the name."""


FUNCTION_HOMES = ("torch", "timm", "einops", "operator", "_operator", "math")
"""Likewise for functions. The builtin `sum` and `max` are other ones than tensors have."""


WRITING_BY_NAME = (
    *(*LAYER_HOMES, "einops", "operator", "_operator"),
    *("math", "builtins", "collections"),
)
"""Their functions write into an argument only where a name, or `inplace`, says so."""


STORING_NOTHING = frozenset({"torch", "numpy", _OWN, *sys.stdlib_module_names})
"""Their code is not searched for what a forward may read or store.

The models of timm and torchvision are plain Python, and may do as a user's does.
"""


def is_library_layer(cls: type) -> bool:
    """Return whether a class of layers is one that the rows of `operations.py` may name."""
    return str(cls.__module__).partition(".")[0] in LAYER_HOMES


def is_library_name(name: str) -> bool:
    """Return whether a module of this name belongs to PyTorch, NumPy, Python or this package."""
    return name.partition(".")[0] in STORING_NOTHING
