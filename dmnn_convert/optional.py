"""Imports that wait until a call or a model needs them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from .errors import ArgumentError

_WHAT_NEEDS = {
    "finetune": "fine-tuning",
    "deploy": "deploying",
    "openvino": "engine='openvino'",
    "hub": "the Hub",
    "wandb": "--track wandb",
    "mlflow": "--track mlflow",
}


def needed(name: str, extra: str = "finetune") -> Any:
    """Import a library of an extra.

    Raises:
        ArgumentError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ArgumentError(
            f'{_WHAT_NEEDS[extra]} needs {error.name}: pip install "dmnn-convert[{extra}]".'
        ) from error


def loaded(*names: str) -> tuple[type, ...]:
    """Return those of the classes ("timm.layers.DropPath") whose modules are loaded and have them.

    No object of any other class can exist yet, so `isinstance` needs no import.
    """
    places = (name.rpartition(".") for name in names)
    found = (getattr(sys.modules.get(module), name, None) for module, _, name in places)
    return tuple(cls for cls in found if cls is not None)


_NONE: Mapping[str, str] = MappingProxyType({})


def lazy_exports(
    package: str, light: Mapping[str, str] = _NONE
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` that give a package the names of its ``public.py``.

    That module, and PyTorch with it, is imported when one of these names is first used.

    Args:
        package: its name.
        light: the names that need no PyTorch, each with the module of the package that has it.
    """
    own = vars(sys.modules[package])

    def get(name: str) -> Any:
        special = name.startswith("_")
        if name in light:
            own[name] = getattr(importlib.import_module(f"{package}.{light[name]}"), name)
            return own[name]
        if not special and importlib.util.find_spec(f"{package}.{name}"):
            return importlib.import_module(f"{package}.{name}")
        if not special or name == "__all__":
            public = importlib.import_module(f"{package}.public")
            own.update({each: getattr(public, each) for each in ("__all__", *public.__all__)})
        if name not in own:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name)
        return own[name]

    return get, lambda: sorted({*own, *get("__all__")})
