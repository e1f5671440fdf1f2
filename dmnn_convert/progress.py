"""Progress: a bar on a terminal, a plain line per minute in a log, or nothing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

MINUTE = 60.0
"""Seconds between two lines of a log."""

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Show no progress inside the block, in this thread or task; warnings stay."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def say(text: str) -> None:
    """Show a line on standard error, above any bar, unless progress is quiet."""
    if not _quiet.get():
        tqdm.write(text, file=sys.stderr)


def on_terminal() -> bool:
    """Return whether standard error is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Progress:
    """A count of finished items, shown on standard error; use it as a context manager.

    Bars have no colours, whatever NO_COLOR says, and disappear once they are closed.

    Args:
        what: name of the work.
        total: number of items; None if unknown.
        shown: whether to show it; None for only on terminals, as a library call does.
        unit: of the count.
        done: number of items finished before.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        *,
        shown: bool | None,
        unit: str = "",
        done: int = 0,
    ) -> None:
        wanted, terminal = shown is not False and not _quiet.get(), on_terminal()
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self._lines = wanted and bool(shown) and not terminal
        self._begun = self._said = time.monotonic()
        self._bar = tqdm(
            desc=what,
            total=total,
            initial=done,
            unit=f" {unit}" if unit else "it",
            disable=not (wanted and terminal),
            leave=False,
            dynamic_ncols=True,
            mininterval=0.5 if unit else 0.1,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def update(self, count: int = 1, note: Callable[[], str] | None = None) -> None:
        """Count; `note` returns text to show beside the count, and is called only when due."""
        self.done += count
        if self._bar.update(count) and note is not None:
            self._bar.set_postfix_str(note())
        if self._lines and (now := time.monotonic()) - self._said >= MINUTE:
            self._said = now
            say(self._line("" if note is None else note()))

    def _line(self, note: str) -> str:
        of = "" if self.total is None else f"/{self.total:,}"
        unit, minutes = self.unit and f" {self.unit}", (self._said - self._begun) / 60
        text = f"{self.what}: {self.done:,}{of}{unit} after {minutes:.1f} minutes"
        return f"{text}; {note}" if note else text


def tracked(
    items: Iterable[T], what: str, total: int | None = None, *, shown: bool | None
) -> Iterator[T]:
    """Yield items, and show how many are done; see `Progress`."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(what, total, shown=shown) as progress:
        for item in items:
            yield item
            progress.update()
