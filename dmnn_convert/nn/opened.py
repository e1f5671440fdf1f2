"""The recorders and forced gates that are open, by task and thread, closed in any order."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import CodeType, FrameType
from typing import Any


class _Entry:
    """A recorder or forcing that a ``with`` has opened.

    Attributes:
        owner: the object that it is opened for, by identity.
        kind: "recorder" or "forcing".
        value: the recorder or forcing.
        is_open: whether its ``with`` is still open, wherever it will be left.
        generator: identity of the generator's frame that the ``with`` stands in, if it does.
        driver: identity and code of the frame that iterates over the generator.
    """

    def __init__(self, owner: object, kind: str, value: Any, frame: FrameType | None) -> None:
        self.owner, self.kind, self.value = owner, kind, value
        self.is_open = True
        self.generator: int | None = None
        self.driver: tuple[int, CodeType] | None = None
        frame = _without_contextlib(frame)
        if frame is not None and _is_generator(frame):
            # Identities, because a frame that is held on to would keep its generator from ending.
            self.generator = id(frame)
            while frame is not None and _is_generator(frame):
                frame = frame.f_back
            self.driver = None if frame is None else (id(frame), frame.f_code)

    def applies(self) -> bool:
        """Return whether it applies to the code that runs now.

        A value opened in a generator does not apply to the generator's caller while that one runs.
        Once the caller has returned it does: such a generator is meant to surround what follows.
        """
        if not self.is_open:
            return False
        if self.generator is None:
            return True
        frame: FrameType | None = sys._getframe(1)
        asked = False
        while frame is not None:
            if id(frame) == self.generator:
                return True
            asked = asked or (id(frame), frame.f_code) == self.driver
            frame = frame.f_back
        return not asked


_HERE = (__file__, contextmanager.__code__.co_filename)


_entries: ContextVar[tuple[_Entry, ...]] = ContextVar("dmnn_convert", default=())


def _is_generator(frame: FrameType) -> bool:
    return bool(frame.f_code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR))


def _without_contextlib(frame: FrameType | None) -> FrameType | None:
    """Return the frame that a ``with`` stands in, not those of context managers on the way to it.

    A context manager written as a generator is there for the ``with`` that enters it.
    """
    while frame is not None:
        caller = frame.f_back
        if frame.f_code.co_filename not in _HERE:
            entered = caller is not None and caller.f_code.co_filename in _HERE
            if not (entered and _is_generator(frame)):
                return frame
        frame = caller
    return None


def latest(owner: object, kind: str) -> Any:
    """Return the latest value open for an owner that applies to this call; None if none does."""
    for entry in reversed(_entries.get()):
        if entry.owner is owner and entry.kind == kind and entry.applies():
            return entry.value
    return None


@contextmanager
def opened(owner: object, kind: str, value: Any) -> Iterator[None]:
    """Let a value be the `latest` of its kind for an owner, in this task or thread."""
    entry = _Entry(owner, kind, value, sys._getframe(1))
    _entries.set((*(e for e in _entries.get() if e.is_open), entry))
    try:
        yield
    finally:
        # It may be closed elsewhere, such as by the garbage collector in another thread, whose
        # list does not hold it. With `is_open` false, it is ignored here all the same.
        entry.is_open, entry.value = False, None
        _entries.set(tuple(e for e in _entries.get() if e.is_open))
