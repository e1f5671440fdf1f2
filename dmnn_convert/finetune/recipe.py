"""The recipe: every option of fine-tuning, flat, as YAML and command have them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..data import DataOptions
from ..errors import ArgumentError
from .option_groups import (
    ConversionOptions,
    DistillationOptions,
    GateOptions,
    NetworkOptions,
    OptimisationOptions,
    RunOptions,
)

GONE = {
    "diversity": "--spread keeps gates dynamic",
    "shaping": "--spread keeps gates dynamic",
}
"""Removed options, all off at 0, and their replacements; old files may still hold them."""


# A dataclass lists the fields of its last base first.
@dataclass(frozen=True)
class Recipe(
    RunOptions,
    DistillationOptions,
    GateOptions,
    OptimisationOptions,
    DataOptions,
    ConversionOptions,
    NetworkOptions,
):
    """How a network is converted, trained and evaluated; see each option's help.

    A recipe is all groups of options at once, and goes wherever one of them is asked for.

    Raises:
        ArgumentError: for values out of range, or that do not go together.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels:
            self._check_levels()
        elif not self.dense:
            self.check_schedule(self.epochs)

    def _check_levels(self) -> None:
        N = self.split_up.n
        if N == 0 or self.categories is not None:
            odd = "n" if N == 0 else "categories"
            raise ArgumentError(
                f"{self.call('levels', odd)}: levels are paths of a converted network, decided "
                "without controllers; leave one of the two out."
            )
        from ..budget import check_levels  # not before it is needed: it needs PyTorch

        check_levels(self.levels, [N])

    def check_schedule(self, epochs: float) -> None:
        """Check that this many epochs leave time to train the gates and reach the target.

        Raises:
            ArgumentError: if not.
        """
        length = "epochs" if epochs == self.epochs else "max_steps"
        if self.open_epochs >= epochs:
            raise ArgumentError(
                f"{self.call('open_epochs', length)}: the gates would never be trained; give "
                "fewer --open-epochs, or -N 0 for the dense network."
            )
        if self.anneal == "none":
            return
        least = self.open_epochs + (self.anneal_epochs or 0.0)
        if least > epochs:
            raise ArgumentError(
                f"{self.call('open_epochs', 'anneal_epochs', length)}: the target would not be "
                f"reached; give {least:g} epochs or more, or fewer --anneal-epochs."
            )
        if self.anneal_from is not None and self.anneal_from < self.target:
            raise ArgumentError(
                f"{self.call('anneal_from', 'target')}: a target falls; give --anneal-from at or "
                "above --target, or --anneal none."
            )

    @property
    def alpha(self) -> float:
        """Weight of the teacher: `distill`, or its default."""
        if self.distill is not None:
            return self.distill
        return 0.5 if self.teacher or (self.trained and self.num_classes is None) else 0.0

    def settled(self) -> Recipe:
        """Return the same recipe with these defaults filled in."""
        return self.with_changes(self.split_up._asdict())

    def with_changes(self, changes: Mapping[str, Any]) -> Recipe:
        """Return a copy of the recipe with these fields changed.

        Raises:
            ArgumentError: for unknown fields or values out of range.
        """
        return replace(self, **current(changes, "Recipe"))

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for YAML and JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def differences(self, other: Recipe) -> list[str]:
        """Return, for each field that differs, "name: mine, not theirs"."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [f"{k}: {mine[k]!r}, not {theirs[k]!r}" for k in mine if mine[k] != theirs[k]]


def current(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return values of options by name, without removed options that were off.

    Raises:
        ArgumentError: for options that are unknown, or removed and were on.
    """
    for name, instead in GONE.items():
        if values.get(name, 0) != 0:
            raise ArgumentError(
                f"{where}: the option {name}={values[name]!r} is gone; {instead}. Leave it out."
            )
    kept = {name: value for name, value in values.items() if name not in GONE}
    known = {entry.name for entry in fields(Recipe)}
    unknown = sorted(set(kept) - known)
    if unknown:
        close = {name: difflib.get_close_matches(name, known, 1) for name in unknown}
        meant = "".join(f" {name}: {found[0]}?" for name, found in close.items() if found)
        raise ArgumentError(
            f"{where}: unknown options {unknown}.{meant} Known are {', '.join(sorted(known))}."
        )
    return kept
