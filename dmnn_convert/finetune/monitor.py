"""What a run shows and writes down: averages, progress, CSV, TensorBoard, warnings."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint import write_all
from ..evaluation import DenseEvaluation, Evaluation
from ..record import Paths
from .objective import Losses
from .recipe import Recipe

LOG = "log.csv"


class Averages:
    """Averages over the steps of one epoch, which can be saved and go on."""

    def __init__(self, sums: Mapping[str, float] | None = None, images: int = 0) -> None:
        self.sums: dict[str, float] = dict(sums or {})
        self.images = images

    def add(self, values: Mapping[str, Tensor | float], images: int) -> None:
        """Take values of a step of so many images."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value) * images
        self.images += images

    def means(self) -> dict[str, float]:
        """Return the averages over all images so far."""
        return {name: total / max(self.images, 1) for name, total in self.sums.items()}

    def state(self) -> dict[str, Any]:
        """Return what the constructor takes."""
        return {"sums": dict(self.sums), "images": self.images}


def measured(
    losses: Losses, logits: Tensor, targets: Tensor, paths: Paths | None
) -> dict[str, Tensor]:
    """Return what is shown of a step: loss parts, top-1 in percent, rates and FLOPs ratios."""
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
    """Return the progress bar's text."""
    text = f"loss {means['loss']:.3f} top1 {means['top1']:.1f}"
    if "rate" not in means:
        return text
    shown = (f"{name} {means[name]:.3f}" for name in ("rate", "gated", "network"))
    return f"{text} {' '.join(shown)} target {target:.3f}"


class Log:
    """One row an epoch, in a CSV file and for TensorBoard where that is installed.

    Args:
        folder: where to write.
        epochs: how many rows of an earlier part of the run to keep.
    """

    def __init__(self, folder: Path, epochs: int = 0) -> None:
        self.file = folder / LOG
        self.rows: list[dict[str, Any]] = []
        if epochs and self.file.exists():
            with self.file.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))[:epochs]
        self.board = _tensorboard(folder)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row; the file is replaced whole."""
        self.rows.append(dict(row))
        write_all(self.file.parent, {self.file.name: self._write})
        if self.board is not None:
            for name, value in row.items():
                if name != "epoch":
                    self.board.add_scalar(name, float(value), int(row["epoch"]))
            self.board.flush()

    def _write(self, path: Path) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def objections(evaluation: Evaluation, recipe: Recipe, *, final: bool) -> list[str]:
    """Return what goes wrong with the gates, in words; see the documentation of fine-tuning."""
    found = []
    total, ratio = len(evaluation.sub_block_rates), evaluation.flops_ratio.mean
    stuck_on, stuck_off = len(evaluation.always_on), len(evaluation.never_on)
    if recipe.target < 1 and stuck_on + stuck_off == total:
        found.append(
            f"every sub-block is always on ({stuck_on}) or always off ({stuck_off}): all images "
            "take one path, a pruned network would do the same. Try --diversity 1, --rates "
            "network or --categories."
        )
    elif recipe.target < 1 and evaluation.path_entropy < 1:
        found.append(
            f"{evaluation.distinct_paths} paths of {evaluation.path_entropy:.2f} bits: nearly all "
            "images take the same one. Try --diversity 1, --rates network or --categories."
        )
    off = ratio - recipe.target
    if final and abs(off) > 0.03:
        found.append(
            f"the gated FLOPs ratio is {ratio:.3f}, {100 * abs(off):.1f} "
            f"points {'above' if off > 0 else 'below'} the target {recipe.target}. Try more "
            "--epochs, a larger --gate-lr or --resource."
        )
    return found


def warn(text: str) -> None:
    """Show a warning about the run."""
    warnings.warn(text, RuntimeWarning, stacklevel=2)


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
