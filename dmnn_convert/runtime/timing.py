"""Times of forms of a network, and the clock that takes them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .stopwatch import seconds_of


@dataclass(frozen=True)
class Timing:
    """The time that one form takes for a batch.

    Attributes:
        form: its name.
        rate: execution rate of forced gates; "own gates" for the model's; "" for dense.
        batch: images.
        milliseconds: median over the rounds.
        spread: half the distance between the quartiles, ms.
        flops_ratio: MACs over those of the dense network, F.
        time_ratio: time over that of the fastest dense form of the run, T.
        eager_ratio: time over that of the dense network as users run it.
        saved: share of the saved MACs that became saved time, (1 - T) / (1 - F).
        executed: share of the sub-blocks that ran; None for dense.
        paths: how many different paths the images took; None for dense.
    """

    form: str
    rate: str
    batch: int
    milliseconds: float
    spread: float
    flops_ratio: float
    time_ratio: float
    eager_ratio: float
    saved: float | None
    executed: float | None = None
    paths: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


class Clock:
    """Seconds of interleaved calls, by name and by which of several inputs they had."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.taken: dict[tuple[str, str], dict[int, list[float]]] = {}

    def time(
        self, name: tuple[str, str], which: int, call: Callable[[Tensor], Any], images: Tensor
    ) -> None:
        """Time a call on a copy of images (B, C, H, W), which it may write into."""
        self.note(name, which, seconds_of(partial(call, images.clone()), self.device))

    def note(self, name: tuple[str, str], which: int, seconds: float) -> None:
        """Add the seconds of a call."""
        self.taken.setdefault(name, {}).setdefault(which, []).append(seconds)

    def median(self, name: tuple[str, str]) -> float:
        """Return the mean over the inputs of the median of each: inputs differ, as F does."""
        return statistics.fmean(statistics.median(taken) for taken in self.taken[name].values())

    def spread(self, name: tuple[str, str]) -> float:
        """Return half the interquartile range of the calls' deviations from their medians."""
        groups = self.taken[name].values()
        apart = [t - statistics.median(taken) for taken in groups for t in taken]
        low, _, high = statistics.quantiles(apart, n=4) if len(apart) > 1 else (0.0, 0.0, 0.0)
        return (high - low) / 2
