"""The mapping from classes to big categories."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ArgumentError
from ..text import some


@dataclass(frozen=True)
class Categories:
    """The big category of each class.

    `DMNNLoss(categories=….labels)` reads the labels, `dynamize(num_categories=….count)` the count.

    Attributes:
        labels: big category of each class, in class order, numbered from 0.
        names: name of each category; every category has a class.
    """

    labels: tuple[int, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ArgumentError: for labels that are not ints or out of range, for categories without a
                class or a name of their own, and for fewer than two categories.
        """
        object.__setattr__(self, "labels", _checked_labels(self.labels))
        object.__setattr__(self, "names", _checked_names(self.names))
        outside = sorted({label for label in self.labels if not 0 <= label < self.count})
        if outside:
            raise ArgumentError(
                f"Categories(labels=...): got {some(outside)} for {self.count} names; labels go "
                f"from 0 to {self.count - 1}."
            )
        used = set(self.labels)
        empty = [name for i, name in enumerate(self.names) if i not in used]
        if empty:
            raise ArgumentError(
                f"Categories(names=...): no class belongs to {some(empty)}; leave such names out "
                "and number the others from 0."
            )

    @property
    def count(self) -> int:
        """Number of categories."""
        return len(self.names)


def _checked_labels(given: Iterable[Any]) -> tuple[int, ...]:
    try:
        return tuple(map(operator.index, given))
    except TypeError:
        raise ArgumentError(
            f"Categories(labels={given!r:.200}): give one int for each class, in class order."
        ) from None


def _checked_names(given: Iterable[Any]) -> tuple[str, ...]:
    names = () if isinstance(given, str) else tuple(given)
    if not all(isinstance(name, str) and name for name in names) or len(names) < 2:
        raise ArgumentError(
            f"Categories(names={given!r:.200}): give two or more non-empty strings, one for each "
            "category; a single one would teach the controllers nothing."
        )
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ArgumentError(
            f"Categories(names=...): more than one category is called {some(twice)}; rename them."
        )
    return names


def check_class_names(class_names: Sequence[str] | None, num_classes: int, call: str) -> None:
    """Raise an ArgumentError unless there is one name for each class."""
    if class_names is not None and len(class_names) != num_classes:
        raise ArgumentError(
            f"{call}: got {len(class_names)} class_names for {num_classes} classes; give one for "
            "each, in class order."
        )
