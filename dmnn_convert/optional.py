"""Libraries that are imported only where a call or a model needs them."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from .errors import ArgumentError


def needed(name: str) -> Any:
    """Import a library of the [finetune] extra.

    Raises:
        ArgumentError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ArgumentError(
            f'fine-tuning needs {error.name}: pip install "dmnn-convert[finetune]".'
        ) from error


def loaded(*names: str) -> tuple[type, ...]:
    """Return those of the classes ("timm.layers.DropPath") whose modules are loaded, and have them.

    Of any other class there can be no object yet, so that `isinstance` needs no import.
    """
    places = (name.rpartition(".") for name in names)
    found = (getattr(sys.modules.get(module), name, None) for module, _, name in places)
    return tuple(cls for cls in found if cls is not None)
