"""Text for people: aligned columns, short lists and values."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence

_SHOWN = 5


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
