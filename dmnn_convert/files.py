"""Atomic writes: all files of a folder, or none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError

from .errors import CheckpointError


def write_text(path: Path, text: str) -> None:
    """Write text with a line's end; for use in `write_all`.

    What has no UTF-8, as some names of files, is written as an escape.
    """
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def write_all(folder: Path, writers: Mapping[str, Callable[[Path], None]]) -> None:
    """Write every file under a temporary name; rename only when all are written.

    Args:
        folder: made if need be.
        writers: name of each file -> function that writes it to a path.

    Raises:
        CheckpointError: if the folder cannot be written; its old files stay.
    """
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in writers}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in writers.items():
            write(temporary[name])
        for name in writers:  # which no file could replace, after others were replaced
            if (folder / name).is_dir():
                raise IsADirectoryError(f"{folder / name} is a directory")
        for name, path in temporary.items():
            os.replace(path, folder / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written ({error}).") from error
    finally:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink()
