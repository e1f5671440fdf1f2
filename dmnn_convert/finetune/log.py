"""The log of a run: averages, progress lines and `log.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distributed import Processes
from ..errors import CheckpointError
from ..evaluation import DenseEvaluation, Evaluation
from ..files import write_all
from ..nn import Paths
from .objective import Losses
from .recipe import GONE, Recipe
from .trackers import Tracker, trackers

LOG = "log.csv"


class Averages:
    """Averages over the steps of one epoch, which can be saved and resumed.

    Sums stay on the device until they are read, because reading waits for it.

    Args:
        names: of the values, in their order.
        sums: of value × images for each, and of the images; (names + 1,) in float64.
    """

    def __init__(self, names: Sequence[str] = (), sums: Tensor | None = None) -> None:
        self.names = tuple(names)
        self.sums = torch.zeros(len(self.names) + 1, dtype=torch.float64) if sums is None else sums

    def add(self, values: Mapping[str, Tensor], images: int) -> None:
        """Take the values of a step, always under the same names, and its number of images."""
        row = torch.stack(list(values.values()))
        row = row.to(torch.float32 if row.device.type == "mps" else torch.float64)
        row = torch.cat([row, torch.ones_like(row[:1])]) * images
        self.sums = self.sums.to(row) + row if self.names else row
        self.names = tuple(values)

    def means(self) -> dict[str, float]:
        """Return the averages over all images of this process so far."""
        return self._means(self.sums)

    def means_everywhere(self, processes: Processes) -> dict[str, float]:
        """Return the averages over the images of all processes, which must all call it."""
        return self._means(processes.rows(self.sums).sum(0))

    def _means(self, sums: Tensor) -> dict[str, float]:
        *totals, images = sums.tolist()
        return {name: n / max(images, 1.0) for name, n in zip(self.names, totals, strict=True)}

    def state(self, processes: Processes) -> dict[str, Any]:
        """Return the sums of all processes for `of_state`; all must call it."""
        return {"names": list(self.names), "sums": processes.rows(self.sums)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any], processes: Processes) -> Averages:
        """Return this process's averages from a state, without those of removed losses."""
        names, sums = state["names"], state["sums"][processes.rank]
        kept = [i for i, name in enumerate(names) if name not in GONE]
        return cls([names[i] for i in kept], sums[[*kept, -1]])


def measured(
    losses: Losses, logits: Tensor, targets: Tensor, paths: Paths | None
) -> dict[str, Tensor]:
    """Return the figures of a step: loss parts, top-1 in percent, rates and FLOPs ratios."""
    labels = targets.argmax(1) if targets.dim() > 1 else targets
    values = {"loss": losses.total}
    values |= {name: part for name, part in losses._asdict().items() if name != "total"}
    values["top1"] = 100 * (logits.argmax(1) == labels).float().mean()
    if paths is not None:
        values["rate"] = paths.gates.mean()
        values["gated"] = paths.flops_ratio()
        values["network"] = paths.network_flops_ratio()
    return {name: value.detach() for name, value in values.items()}


def postfix(means: Mapping[str, float], target: float) -> str:
    """Return the progress bar's text: the loss, its parts that are not zero, and more."""
    parts = (name for name in Losses._fields if means.get(name))
    shown = [f"loss {means['loss']:.3f}"]
    shown += [f"{name.removesuffix('ification')} {means[name]:.3f}" for name in parts]
    shown.append(f"top1 {means['top1']:.1f}")
    if "rate" in means:
        shown += [f"{name} {means[name]:.3f}" for name in ("rate", "gated", "network")]
        shown.append(f"target {target:.3f}")
    return " ".join(shown)


class Log:
    """One row per epoch, in a CSV file and for trackers.

    Args:
        folder: where to write.
        epochs: how many rows of an earlier part of the run to keep.
        trackers: take the rows as well.
    """

    def __init__(self, folder: Path, epochs: int = 0, trackers: Sequence[Tracker] = ()) -> None:
        self.file = folder / LOG
        self.rows: list[dict[str, Any]] = []
        if epochs and self.file.exists():
            self.rows = self._read()[:epochs]
        self.trackers = trackers

    def _read(self) -> list[dict[str, Any]]:
        try:
            with self.file.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file, strict=True))
            if any(None in (*row, *row.values()) for row in rows):
                raise ValueError("a row has more or fewer values than there are names")
        except (OSError, ValueError, csv.Error) as error:
            raise CheckpointError(
                f"{self.file}: is damaged ({error}); move it away, and --resume begins a new one."
            ) from error
        return rows

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row; the file is replaced whole."""
        self.rows.append(dict(row))
        write_all(self.file.parent, {self.file.name: self._write})
        figures = {name: float(value) for name, value in row.items() if name != "epoch"}
        for tracker in self.trackers:
            tracker.add(figures, int(row["epoch"]))

    def close(self, *, failed: bool) -> None:
        """Close the log: the run ended, or was stopped."""
        for tracker in self.trackers:
            tracker.close(failed=failed)

    def _write(self, path: Path) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


@contextmanager
def opened_log(recipe: Recipe, folder: Path, epochs: int, *, wanted: bool) -> Iterator[Log | None]:
    """Open a run's log and its trackers, and close them, in the process that writes.

    Args:
        recipe: which trackers, and the options that they show.
        folder: the run's.
        epochs: how many are logged already.
        wanted: whether this process writes.

    Raises:
        ArgumentError: if a tracker's library is missing.
    """
    if not wanted:
        yield None
        return
    opened = trackers(recipe.track, folder, recipe.to_dict(), epochs)
    log, failed = Log(folder, epochs, opened), True
    try:
        yield log
        failed = False
    finally:
        log.close(failed=failed)


def epoch_line(row: Mapping[str, Any], epochs: int, *, verbose: bool) -> str:
    """Return the results of an epoch in one line; with all figures of its row if `verbose`."""
    figures = {name: float(value) for name, value in row.items() if name != "epoch"}
    if verbose:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    else:
        test = [f"top1 {figures['test_top1']:.2f}"]
        test += [f"{n} {figures[f'test_{n}']:.3f}" for n in ("network",) if f"test_{n}" in figures]
        shown = f"{postfix(figures, figures['target'])}; test {' '.join(test)}"
    return f"epoch {row['epoch']}/{epochs}: {shown}"


def summary(evaluation: DenseEvaluation) -> dict[str, float]:
    """Return the figures of an evaluation that a log shows for every epoch."""
    values = {"top1": evaluation.top1, "images_per_second": evaluation.images_per_second}
    if isinstance(evaluation, Evaluation):
        values |= {
            "network": evaluation.network_flops_ratio.mean,
            "gated": evaluation.flops_ratio.mean,
            "spread": evaluation.network_flops_ratio.std,
            "paths": float(evaluation.distinct_paths),
            "path_entropy": evaluation.path_entropy,
            "information": evaluation.mutual_information - evaluation.chance_information,
        }
    return values
