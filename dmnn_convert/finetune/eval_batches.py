"""The batches and options for `evaluate` and `evaluate_dense`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data import Batch, DataOptions, checked
from ..distributed import Processes
from .optimisation import amp_dtype
from .option_groups import OptimisationOptions


@dataclass
class EvaluationBatches:
    """The batches of a loader, once each time they are asked for; unreadable images may stop.

    Attributes:
        skipped: how many images could not be read the last time, in this process.
    """

    __test__ = False  # pytest takes it for one of its own

    options: DataOptions
    loader: Iterable[Batch]
    processes: Processes
    skipped: int = 0

    def __iter__(self) -> Iterator[Batch]:
        self.skipped = 0
        for batch in self.loader:
            self.skipped += len(batch.bad)
            if self.options.on_bad_image == "stop":
                checked(batch, self.options)
            if len(batch.labels):
                yield batch

    def all_skipped(self) -> int:
        """Return how many images could not be read in all processes, which all must ask."""
        return int(self.processes.rows(torch.tensor([self.skipped])).sum())


def evaluation_options(
    options: OptimisationOptions, classes: Sequence[str], processes: Processes
) -> dict[str, Any]:
    """Return the options of `evaluate`."""
    return {
        "classes": classes,
        "device": processes.device,
        "amp_dtype": amp_dtype(options, processes.device),
        "channels_last": options.channels_last,
        "progress": processes.is_main,
    }
