"""The cost of each way to run a block, and the cheapest way for given gates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


class Line(NamedTuple):
    """Seconds for n images: ``fixed + each · n``."""

    fixed: float
    each: float

    def at(self, n: int) -> float:
        """Return the seconds for n images."""
        return self.fixed + self.each * n


@dataclass(frozen=True)
class Costs:
    """Seconds that a block takes for images of one size.

    Attributes:
        views: by key, one image at a time, without copying it.
        gathered: by key, images that are gathered, run together and put back.
        masked: every image through all sub-blocks; None where it cannot run so.
    """

    views: Mapping[int, float]
    gathered: Mapping[int, Line]
    masked: Line | None

    def plan(self, counts: Counter[int]) -> dict[int, str] | None:
        """Return for each key the cheapest way to run its images; None for all masked.

        Args:
            counts: how many images have each key.
        """
        ways: dict[int, str] = {}
        total = 0.0
        for key, count in counts.items():
            apart, together = self.views[key] * count, self.gathered[key].at(count)
            ways[key] = "views" if apart < together else "gathered"
            total += min(apart, together)
        images = sum(counts.values())
        return None if self.masked is not None and self.masked.at(images) < total else ways

    def fits(self, keys: Collection[int], *, masks: bool) -> bool:
        """Return whether these are sound costs of a block with such keys."""
        lines = [*self.gathered.values(), *([] if self.masked is None else [self.masked])]
        values = [*self.views.values(), *(value for line in lines for value in line)]
        sound = all(math.isfinite(value) and value >= 0 for value in values)
        known = set(self.views) == set(self.gathered) == set(keys)
        return sound and known and (self.masked is not None) == masks

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Costs:
        """Rebuild from `to_dict`'s output after a trip through JSON.

        Raises:
            KeyError, TypeError, ValueError: if it is anything else.
        """
        masked = values["masked"]
        return cls(
            {int(key): float(value) for key, value in values["views"].items()},
            {int(key): _line(value) for key, value in values["gathered"].items()},
            None if masked is None else _line(masked),
        )


def _line(values: Sequence[Any]) -> Line:
    fixed, each = values
    return Line(float(fixed), float(each))


_CALL, _MAC, _VALUE = 2e-5, 2e-11, 1e-9
"""Guesses for one core, in seconds: a layer's call, a MAC, and copying a value."""


def guessed(
    layers: Mapping[int, int], macs: Mapping[int, float], values: int, *, masks: bool
) -> Costs:
    """Return costs by rule of thumb, for sizes that were never measured.

    Args:
        layers: by key, how many layers run.
        macs: by key, MACs of one image.
        values: how many values of one image are read and written.
        masks: whether the block can run masked.
    """
    views = {key: _CALL * (n + 2) + _MAC * macs[key] + _VALUE * values for key, n in layers.items()}
    gathered = {
        key: Line(_CALL * (n + 4), _MAC * macs[key] + 2 * _VALUE * values)
        for key, n in layers.items()
    }
    most = max(layers)
    masked = Line(_CALL * (layers[most] + 4), _MAC * macs[most] + 2 * _VALUE * values)
    return Costs(views, gathered, masked if masks else None)


def line_through(few: int, seconds_few: float, many: int, seconds_many: float) -> Line:
    """Return the line through two measurements, with nothing negative in it."""
    if many == few:
        return Line(0.0, seconds_many / many)
    each = max(0.0, (seconds_many - seconds_few) / (many - few))
    return Line(max(0.0, seconds_few - each * few), each)
