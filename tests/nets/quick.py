"""The choice of cases: of many alike, the quick suite runs a few and the slow one the others."""

from collections.abc import Callable, Iterable

import pytest


def slow_unless(quick: Callable[..., bool], cases: Iterable) -> list:
    """Return the cases for `parametrize`, marked `slow` unless they are quick."""
    marks = {True: [], False: [pytest.mark.slow]}
    return [pytest.param(*row, marks=marks[bool(quick(*row))]) for row in map(_row, cases)]


def one_in(n: int, cases: Iterable, first: int = 0) -> list:
    """Return the cases for `parametrize`, marked `slow` but for every n-th, from `first` on."""
    numbered = [
        (i, case if hasattr(case, "marks") else pytest.param(*_row(case)))
        for i, case in enumerate(cases)
    ]
    return [
        case if i % n == first else case._replace(marks=(*case.marks, pytest.mark.slow))
        for i, case in numbered
    ]


def _row(case: object) -> tuple:
    return case if isinstance(case, tuple) else (case,)
