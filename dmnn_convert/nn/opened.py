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
    """Something that a ``with`` has opened.

    Attributes:
        owner: what it is opened for, by identity.
        kind: what it is: "recorder" or "forcing".
        value: what was opened.
        is_open: whether its ``with`` is still open, wherever that is left.
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
        """Tell whether it is meant for what runs now.

        What a generator opened is not meant for whoever iterates over it, while that one runs.
        Once that one has returned it is: such a generator is there to be around what follows.
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
    """Return what was opened last for an owner, of what is meant for this call; None if nothing."""
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
        # Closed elsewhere, such as by a garbage collector in another thread, it is gone all the
        # same: there it is not in the list, and here nobody sees it any more.
        entry.is_open, entry.value = False, None
        _entries.set(tuple(e for e in _entries.get() if e.is_open))
