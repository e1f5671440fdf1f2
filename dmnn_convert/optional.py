"""Optional libraries, which fine-tuning needs and the core does not."""

from __future__ import annotations

import importlib
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
