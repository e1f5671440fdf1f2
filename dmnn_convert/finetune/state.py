"""The state of a run on disk: written whole or not at all, read as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..checkpoint import write_all
from ..errors import ArgumentError, CheckpointError
from .recipe import Recipe

LAST = "last.pt"
_FREE = frozenset({"output", "workers", "device", "data", "save_minutes", "on_bad_image"})
"""Options that may change between the parts of a run: they say where, not what."""


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Replace the folder's state, which stays as it was where this fails.

    Raises:
        CheckpointError: if it cannot be written.
    """
    try:
        write_all(folder, {LAST: lambda path: torch.save(state, path)})
    except (CheckpointError, RuntimeError) as error:  # PyTorch's writer raises on a full disk
        raise CheckpointError(
            f"{folder / LAST}: cannot be written ({str(error).splitlines()[0]}); what was saved "
            "before is intact. Make room and go on with --resume."
        ) from error


def read_state(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Read the folder's state.

    Raises:
        ArgumentError: if there is none, or it is of a run with another recipe.
        CheckpointError: if it is damaged.
    """
    file = folder / LAST
    if not file.is_file():
        raise ArgumentError(f"--resume: {file} is not there; start without --resume.")
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        before = Recipe().with_changes(state["recipe"])
    except Exception as error:  # a damaged file can fail in any way at all
        raise CheckpointError(f"{file}: is damaged or no state of a run ({error}).") from error
    theirs = before.with_changes({name: getattr(recipe, name) for name in _FREE})
    odd = recipe.differences(theirs)
    if odd:
        raise ArgumentError(
            f"--resume: the run in {folder} has another configuration: {'; '.join(odd)}. Give the "
            "same options, or another --output."
        )
    return state


def prepare_folder(folder: Path, *, resume: bool) -> None:
    """Make the folder of a run.

    Raises:
        ArgumentError: if it holds another run, or cannot be made.
    """
    if not resume and (folder / LAST).exists():
        raise ArgumentError(
            f"{folder}: holds a run already; --resume goes on with it, another --output starts "
            "a new one."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"{folder}: cannot be made ({error.strerror}).") from error
