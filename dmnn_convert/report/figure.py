"""Figures as files, checked before they are drawn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import ArgumentError


def check_picture(path: Path, call: str) -> None:
    """Check that a picture can be written to a file.

    Args:
        path: where it is to be written; the suffix says the format.
        call: the caller, for the error.

    Raises:
        ArgumentError: if matplotlib or the folder is missing, or there is no such format.
    """
    if not path.parent.is_dir():
        raise ArgumentError(f"{call}(path={str(path)!r}): there is no folder {path.parent}.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ArgumentError(
            f"{call}: needs matplotlib; pip install 'dmnn-convert[report]'."
        ) from error
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ArgumentError(
            f"{call}(path={str(path)!r}): end the name in one of "
            + ", ".join(f".{name}" for name in sorted(formats))
            + "."
        )


def figure_for(path: Path, call: str, size: tuple[float, float]) -> Any:
    """Return an empty figure for a file, width and height in inches; else as `check_picture`."""
    check_picture(path, call)
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def write_figure(figure: Any, path: Path) -> None:
    """Write a figure to a file, whole or not at all."""
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(part, dpi=150)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
