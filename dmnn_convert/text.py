"""Text for people: aligned columns, short lists and values."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Sequence

_SHOWN, _LINE = 5, 200
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def some(values: Sequence[object]) -> str:
    """Return the first few values and how many more there are, for a message."""
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(map(repr, values[:_SHOWN])) + more


def shown(value: object) -> str:
    """Return a value for a message, shortened if it is long or deep."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()


_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 1, 300, 300, 50


_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 20


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without a terminal's colours, or its type."""
    lines = _COLOURS.sub("", str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:_LINE]


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error's message, or its type."""
    return first_line(error).partition(". ")[0].rstrip(".")


def cause(error: BaseException) -> str:
    """Return the first line of what caused an error, however many others were raised from it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def aligned(lines: Iterable[tuple[str, ...]]) -> str:
    """Return rows of text as columns: the first flush left, numbers flush right."""
    rows = list(lines)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
