"""The budget's offset and the statistics of levels, which controllers keep beside weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .controller import GateController, controllers


def check_own_statistics(model: nn.Module, call: str) -> None:
    """Check that a converted model's norms have their own statistics.

    Raises:
        ArgumentError: if it is not converted, or inside `at_level`.
    """
    levels = controllers(model)[0].levels
    if levels is not None:
        levels.check_own(call)


def make_room(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a model's controllers the buffers that a `state_dict` has, and no others."""
    for name, module in model.named_modules():
        if isinstance(module, GateController):
            module.make_room(state, f"{name}.")
