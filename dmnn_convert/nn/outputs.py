"""The tensors in whatever a model returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor


def tensors_in(output: Any) -> list[Tensor]:
    """Return all tensors in a model's output, in order: of mappings, sequences and dataclasses."""
    if isinstance(output, Tensor):
        return [output]
    if is_dataclass(output) and not isinstance(output, Mapping):
        output = vars(output)
    parts = output.values() if isinstance(output, Mapping) else output
    nested = isinstance(output, Mapping | tuple | list)
    return [tensor for part in parts for tensor in tensors_in(part)] if nested else []
