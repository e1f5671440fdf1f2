"""Early ends of a run: signals, and loader processes that die."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DmnnError, TrainingError


class Interrupted(DmnnError):
    """A run was stopped, and can be resumed."""


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Note Ctrl-C and terminating signals, so that a step is never cut in two.

    A second Ctrl-C stops at once.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread gets signals
        return

    def note(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def workers_watched(advice: str = "") -> Iterator[None]:
    """Explain the death of a loader process, with `advice`.

    Raises:
        TrainingError: instead of PyTorch's error.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        # PyTorch says so, or a pipe between processes breaks first. What a loader process raised
        # itself PyTorch raises again.
        if not tells_of_worker(error) and not _between_processes(error):
            raise
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise TrainingError(
            f"a loader process died ({said}); out of memory, perhaps: try fewer --workers.{advice}"
        ) from error


def tells_of_worker(error: Exception) -> bool:
    """Return whether PyTorch says that a loader process died, which it does amid anything else."""
    return "DataLoader worker (pid" in str(error)


_PIPES = str(Path(multiprocessing.__file__).parent)


def _between_processes(error: Exception) -> bool:
    """Return whether an error comes from a pipe to another process, not from stdout's, say."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename.startswith(_PIPES) for frame, _ in frames)
