"""Evaluation as a recipe asks for it: what `evaluate` and `evaluate_dense` are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from .data import Batch, checked
from .distributed import Processes
from .optimisation import amp_dtype
from .recipe import Recipe


@dataclass(frozen=True)
class TestBatches:
    """The batches of a loader, once each time they are asked for; unreadable images may stop."""

    __test__ = False  # pytest takes it for one of its own

    recipe: Recipe
    loader: DataLoader[Any]

    def __iter__(self) -> Iterator[Batch]:
        return (checked(batch, self.recipe) for batch in self.loader)


def evaluation_of(
    recipe: Recipe, loader: DataLoader[Any], classes: Sequence[str], processes: Processes
) -> tuple[TestBatches, dict[str, Any]]:
    """Return the batches to evaluate on, and the options of `evaluate`."""
    options = {
        "classes": classes,
        "device": processes.device,
        "amp_dtype": amp_dtype(recipe, processes.device),
        "channels_last": recipe.channels_last,
        "progress": processes.leads,
    }
    return TestBatches(recipe, loader), options
