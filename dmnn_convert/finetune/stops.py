"""Early ends of a run: signals, and loader processes that die."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..data import LoaderDiedError
from ..errors import DmnnError, TrainingError
from ..text import first_line


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
    except RuntimeError as error:
        if not tells_of_worker(error):  # such as an error that a loader process raised itself
            raise
        raise TrainingError(
            f"a loader process died ({first_line(error)}); out of memory, perhaps: try "
            f"fewer --workers.{advice}"
        ) from error


def tells_of_worker(error: Exception) -> bool:
    """Return whether a loader process died, which PyTorch reports inside other errors."""
    return isinstance(error, LoaderDiedError) or "DataLoader worker (pid" in str(error)
