"""Trackers that take the figures of a run besides its own log: TensorBoard, W&B, MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..files import write_all, write_text
from ..foreign import parsed_json
from ..optional import needed

RUNS = "trackers.json"
"""The file with the names that trackers gave the run, under which it resumes."""


class Tracker(Protocol):
    """Takes a row of figures per epoch."""

    def add(self, figures: Mapping[str, float], epoch: int) -> None:
        """Take the figures of an epoch."""

    def close(self, *, failed: bool) -> None:
        """End the tracked run."""


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def add(self, figures: Mapping[str, float], epoch: int) -> None:
        """Take the figures of an epoch."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def close(self, *, failed: bool) -> None:
        """Close the file."""
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; its environment variables say where, WANDB_MODE=offline too."""

    name = "wandb"

    def __init__(self, folder: Path, config: Mapping[str, Any], run: str | None) -> None:
        self.run = needed("wandb", "wandb").init(
            dir=str(folder), name=folder.name, config=dict(config), id=run, resume="allow"
        )
        self.id = str(self.run.id)

    def add(self, figures: Mapping[str, float], epoch: int) -> None:
        """Take the figures of an epoch."""
        self.run.log({"epoch": epoch, **figures}, step=epoch, commit=True)

    def close(self, *, failed: bool) -> None:
        """Finish the run."""
        self.run.finish(exit_code=int(failed))


class Mlflow:
    """A run of MLflow; its environment variables say where: MLFLOW_TRACKING_URI and others."""

    name = "mlflow"

    def __init__(self, folder: Path, config: Mapping[str, Any], run: str | None) -> None:
        self.mlflow = needed("mlflow", "mlflow")
        self.id = str(self.mlflow.start_run(run_id=run, run_name=folder.name).info.run_id)
        if run is None:
            self.mlflow.log_params({name: str(value) for name, value in config.items()})

    def add(self, figures: Mapping[str, float], epoch: int) -> None:
        """Take the figures of an epoch."""
        self.mlflow.log_metrics(dict(figures), step=epoch)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self.mlflow.end_run("FAILED" if failed else "FINISHED")


_KINDS: dict[str, Callable[[Path, Mapping[str, Any], str | None], Any]] = {
    each.name: each for each in (WeightsAndBiases, Mlflow)
}


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers are installed, before the run starts.

    Raises:
        ArgumentError: if a library is missing.
    """
    for name in names:
        needed(name, name)


def trackers(
    names: Sequence[str], folder: Path, config: Mapping[str, Any], epochs: int
) -> list[Tracker]:
    """Open the trackers of a run: those that are asked for, and TensorBoard if it is installed.

    Args:
        names: "wandb", "mlflow".
        folder: the run's.
        config: the run's options, for the trackers to show.
        epochs: how many an earlier part of the run has logged.

    Raises:
        ArgumentError: if a library is missing.
    """
    known = _known(folder) if epochs else {}
    opened: list[Tracker] = []
    for name in dict.fromkeys(names):
        opened.append(_KINDS[name](folder, config, known.get(name)))
        known[name] = opened[-1].id  # type: ignore[attr-defined]
    if known:
        text = json.dumps(known, indent=1)
        write_all(folder, {RUNS: lambda path: write_text(path, text)})
    board = _tensorboard(folder, epochs)
    return opened if board is None else [*opened, board]


def _known(folder: Path) -> dict[str, str]:
    try:
        found = parsed_json((folder / RUNS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _tensorboard(folder: Path, epochs: int) -> TensorBoard | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    # Rows of epochs that will be repeated are left out.
    return TensorBoard(SummaryWriter(str(folder), purge_step=epochs + 1))
