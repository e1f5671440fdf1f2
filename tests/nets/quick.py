"""Which of many alike cases the quick suite runs; the slow one runs the others."""

from collections.abc import Callable, Iterable

import pytest


def slow_unless(quick: Callable[..., bool], cases: Iterable) -> list:
    """Return the cases for `parametrize`, marked `slow` unless they are quick."""
    marks = {True: [], False: [pytest.mark.slow]}
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*row, marks=marks[bool(quick(*row))]) for row in rows]
