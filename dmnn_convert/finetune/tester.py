"""The evaluation of a run's network: all of it, or at each level."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from ..budget import at_level, estimate_levels, level_path, search_ladder
from ..data import Batch
from ..distributed import Processes
from ..evaluation import DenseEvaluation, Evaluation, evaluate, evaluate_dense
from ..flops import FlopsTable
from ..nn import force_gates
from .eval_batches import EvaluationBatches, evaluation_options
from .recipe import Recipe

LEVEL_BATCHES = 64
"""Batches for each level's norm statistics."""


class Tester:
    """Evaluates networks on the test images.

    Args:
        recipe: the levels, and how to evaluate.
        table: of the converted network; None for a dense one.
        loader: this process's test batches.
        classes: their names.
        processes: which process this is.
    """

    def __init__(
        self,
        recipe: Recipe,
        table: FlopsTable | None,
        loader: Iterable[Batch],
        classes: Sequence[str],
        processes: Processes,
    ) -> None:
        self.levels, self.table, self.processes = recipe.levels, table, processes
        self.batches = EvaluationBatches(recipe, loader, processes)
        self.options: dict[str, Any] = evaluation_options(recipe, classes, processes)
        self.skipped = 0

    def opened(self, model: nn.Module) -> AbstractContextManager[None]:
        """Turn all sub-blocks on if no controller was trained to decide."""
        return force_gates(model, True) if self.levels else nullcontext()

    def evaluated(self, model: nn.Module) -> Evaluation | DenseEvaluation:
        """Evaluate the network, and count the images that could not be read, in `skipped`."""
        if self.table is None:
            found: Evaluation | DenseEvaluation = evaluate_dense(
                model, self.batches, **self.options
            )
        else:
            with self.opened(model):
                found = evaluate(model, self.table, self.batches, **self.options)
        self.skipped = self.batches.all_skipped()
        return found

    def at_levels(self, model: nn.Module, batches: Iterable[Batch]) -> dict[float, Evaluation]:
        """Estimate the norm statistics of levels and of paths by stage; evaluate the levels.

        The paths are the ladder that `search_ladder` finds, which cascades choose from as well.

        Args:
            model: the trained network.
            batches: to train on; asked for once a level.
        """
        found: dict[float, Evaluation] = {}
        if self.table is None or not self.levels:
            return found
        shown = self.processes.is_main
        uniform = [level_path(model, level) for level in self.levels]
        ladder = [
            path
            for path in search_ladder(model, batches, progress=shown)
            if not any(path.equal(own) for own in uniform)
        ]
        estimate_levels(model, batches, [*uniform, *ladder], LEVEL_BATCHES, progress=shown)
        self.processes.share(model.buffers())
        for level in self.levels:
            with at_level(model, level):
                found[level] = evaluate(model, self.table, self.batches, **self.options)
        return found
