"""The rates at which the sub-blocks of a new controller run."""

from __future__ import annotations

from collections.abc import Sequence

_STEP = 1e-6
"""Precision of the search for a rate."""


def start_rates(N: int, rate: float, certainty: float) -> list[float]:
    """Return the initial execution rate of each of N sub-blocks: falling, with mean `rate`.

    As many as possible run at `certainty`, the others at one minus that, but for one in between. If
    that mean is out of reach, or certainty is 0, all run at `rate`.
    """
    least = 1 - certainty
    if not least <= rate <= certainty:
        return [rate] * N
    width, above = certainty - least, N * (rate - least)
    return [least + min(max(above - n * width, 0.0), width) for n in range(N)]


def nested_rates(rates: Sequence[float], *, keep_one: bool) -> list[float]:
    """Return the rates to turn sub-blocks on at so that as many run as at the given rates.

    A nested one runs only if those before it do: all are turned on equally often.
    """
    N, goal = len(rates), sum(rates)
    low, high = 0.0, 1.0 - _STEP
    while high - low > _STEP:
        middle = (low + high) / 2
        run = sum(middle ** (n - keep_one) for n in range(1, N + 1))
        low, high = (middle, high) if run < goal else (low, middle)
    return [high] * N
