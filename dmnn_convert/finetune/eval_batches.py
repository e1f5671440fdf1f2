"""The batches and settings of an evaluation, as a recipe asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data import Batch, checked
from ..distributed import Processes
from .optimisation import amp_dtype
from .recipe import Recipe


@dataclass
class EvaluationBatches:
    """The batches of a loader, once each time they are asked for; unreadable images may stop.

    Attributes:
        skipped: how many images could not be read the last time, in this process.
    """

    __test__ = False  # pytest takes it for one of its own

    recipe: Recipe
    loader: Iterable[Batch]
    processes: Processes
    skipped: int = 0

    def __iter__(self) -> Iterator[Batch]:
        self.skipped = 0
        for batch in self.loader:
            self.skipped += len(batch.bad)
            if self.recipe.on_bad_image == "stop":
                checked(batch, self.recipe)
            if len(batch.labels):
                yield batch

    def all_skipped(self) -> int:
        """Return how many images could not be read in all processes, which all must ask."""
        return int(self.processes.rows(torch.tensor([self.skipped])).sum())


def evaluation_of(
    recipe: Recipe, loader: Iterable[Batch], classes: Sequence[str], processes: Processes
) -> tuple[EvaluationBatches, dict[str, Any]]:
    """Return the batches to evaluate on, and the options of `evaluate`."""
    options = {
        "classes": classes,
        "device": processes.device,
        "amp_dtype": amp_dtype(recipe, processes.device),
        "channels_last": recipe.channels_last,
        "progress": processes.is_main,
    }
    return EvaluationBatches(recipe, loader, processes), options
