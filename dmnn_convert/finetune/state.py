"""The state of a run on disk: written whole or not at all, read as plain data."""

from __future__ import annotations

import math
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..data import Data
from ..distributed import Processes
from ..errors import ArgumentError, CheckpointError
from ..files import write_all
from ..foreign import check_archive
from ..text import first_line, shown
from .file_names import LAST
from .recipe import Recipe
from .stops import tells_of_worker

FORMAT = 3


NONE_SETTLED = -1.0
"""The top-1 of the best network before any has reached the target."""


_FREE = frozenset({"output", "workers", "device", "data", "save_minutes", "on_bad_image", "track"})
"""Options that may change when a run resumes: they say where it runs, not what."""


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Replace the folder's state, which stays as it was if this fails.

    Raises:
        CheckpointError: if it cannot be written.
    """
    try:
        whole = {"format": FORMAT, **state}
        write_all(folder, {LAST: lambda path: torch.save(whole, path)})
    except (CheckpointError, RuntimeError) as error:  # PyTorch's writer raises on a full disk
        if tells_of_worker(error):
            raise
        remedy = "nothing was saved yet. Free some space."
        if (folder / LAST).exists():
            remedy = "what was saved before is intact. Free some space and continue with --resume."
        raise CheckpointError(
            f"{folder / LAST}: cannot be written ({first_line(error)}); {remedy}"
        ) from error


def read_state(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Read the folder's state.

    Raises:
        ArgumentError: if there is none, or it is of a run with another recipe.
        CheckpointError: if it is damaged.
    """
    file = folder / LAST
    if not file.is_file():
        raise ArgumentError(f"--resume: {file} does not exist; start without --resume.")
    try:
        check_archive(file)
        _check_sums(file)
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        version, options = state.get("format"), state["recipe"]
    except Exception as error:  # a damaged file can fail in any way
        raise _damaged(folder, type(error).__name__) from error
    if version != FORMAT:
        raise CheckpointError(
            f"{file}: has format {shown(version)}, this version reads {FORMAT}; continue with the "
            "version of dmnn-convert that wrote it, or start again with another --output."
        )
    wrong = _oddity(state)
    if wrong:
        raise _damaged(folder, wrong)
    before = Recipe().with_changes(options)
    theirs = before.with_changes({name: getattr(recipe, name) for name in _FREE})
    odd = recipe.differences(theirs)
    if odd:
        raise ArgumentError(
            f"--resume: the run in {folder} has another configuration: {'; '.join(odd)}. Give the "
            "same options, or another --output."
        )
    return state


def hand_over(folder: Path, state: Mapping[str, Any], use: Callable[[Any], None]) -> None:
    """Hand a run's state to its trainer.

    Raises:
        CheckpointError: if it does not fit, because it is damaged.
    """
    try:
        use(state["trainer"])
    except Exception as error:  # every part of it goes somewhere else
        raise _damaged(folder, first_line(error)) from error


def _damaged(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{folder / LAST}: is damaged or not a run's state ({reason}). Start again with another "
        f"--output; {folder / 'best'}, if it is there, can be its --converted."
    )


def _oddity(state: Mapping[str, Any]) -> str | None:
    """Return the faults in a state's parts other than the trainer's."""
    kinds = {"recipe": dict, "setting": dict, "files": dict, "trainer": dict}
    odd = [name for name, kind in kinds.items() if not isinstance(state.get(name), kind)]
    if not odd:
        tensors = [state["files"].get(part) for part in ("train", "test")]
        sound = all(isinstance(t, torch.Tensor) and t.dtype == torch.int64 for t in tensors)
        odd = [] if sound else ["files"]
    for name, least in (("best", NONE_SETTLED), ("minutes", 0.0)):
        value = state.get(name)
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= least):
            odd.append(name)
    return f"its {', '.join(odd)}" if odd else None


def _check_sums(file: Path) -> None:
    """Raise an error if the file differs from PyTorch's checksums, which it never checks itself."""
    with zipfile.ZipFile(file) as whole:
        damaged = whole.testzip()
    if damaged is not None:
        raise ValueError(damaged)


def setting_of(data: Data, processes: Processes) -> dict[str, Any]:
    """Return the setting that a run depends on besides its recipe, as plain data."""
    return {
        "training images": len(data.train),  # type: ignore[arg-type]
        "test images": len(data.test),  # type: ignore[arg-type]
        "classes": list(data.classes),
        "processes": processes.count,
    }


def check_setting(folder: Path, state: Mapping[str, Any], setting: Mapping[str, Any]) -> None:
    """Check that a resumed run has the data and the number of processes that it began with.

    Args:
        folder: of the run.
        state: what `read_state` returned.
        setting: the present setting by name: numbers and lists of names.

    Raises:
        ArgumentError: if anything differs; it lists all differences.
    """
    before = state["setting"]
    odd = [
        f"{name}: {_difference(now, before.get(name))}"
        for name, now in setting.items()
        if now != before.get(name)
    ]
    if odd:
        raise ArgumentError(
            f"--resume: the run in {folder} began with other data or processes: {'; '.join(odd)}. "
            "Restore these, or start again with another --output."
        )


def _difference(now: Any, before: Any) -> str:
    if not (isinstance(now, list) and isinstance(before, list)):
        return f"{now}, not {before}"
    new, gone = ([x for x in a if x not in b] for a, b in ((now, before), (before, now)))
    parts = [f"{len(now)}, not {len(before)}"] if len(now) != len(before) else []
    for word, names in (("new", new), ("gone", gone)):
        if names:
            parts.append(f"{word} {', '.join(names[:3])}" + (" …" if len(names) > 3 else ""))
    return " ".join(parts) if parts else "in another order"


def prepare_folder(folder: Path, *, resume: bool) -> None:
    """Make the folder of a run.

    Raises:
        ArgumentError: if it holds another run, or cannot be made.
    """
    if not resume and (folder / LAST).exists():
        raise ArgumentError(
            f"{folder}: already holds a run; --resume continues it, another --output starts "
            "a new one."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ArgumentError(
            f"{folder}: cannot be made or written to ({error.strerror}); give another --output."
        ) from error
