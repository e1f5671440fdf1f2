"""The fit of a cascade as JSON types, checked when it comes back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..budget import Cascade, Fitted, Level
from ..config import DynamizeConfig
from ..errors import ArgumentError, CheckpointError
from ..text import shown


def conversion_in(file: Path, values: object) -> DynamizeConfig:
    """Return the conversion that a file describes.

    Raises:
        CheckpointError: if it describes none.
    """
    try:
        if isinstance(values, Mapping):
            return DynamizeConfig.from_dict(values)
    except ArgumentError as error:
        raise CheckpointError(f"{file}: describes no conversion: {error}") from error
    raise CheckpointError(f"{file}: its conversion is {shown(values)}; save it again.")


def fitted_to_json(fitted: Fitted) -> dict[str, Any]:
    """Return a fit as JSON types; a level that is a row of gates becomes zeros and ones as text."""
    return {
        "levels": None if fitted.levels is None else list(map(level_to_json, fitted.levels)),
        "top1": fitted.top1,
        "flops_ratio": fitted.flops_ratio,
        "shares": fitted.shares,
    }


def level_to_json(level: Level | Tensor) -> object:
    """Return a level as JSON types."""
    return "".join(str(int(gate)) for gate in level) if isinstance(level, Tensor) else level


def fitted_from_json(file: Path, described: Mapping[str, Any], cascade: Cascade) -> Fitted | None:
    """Return the result of a cascade's fit, or None if it was not fitted.

    Raises:
        CheckpointError: for values that `fitted_to_json` never returns.
    """
    values = described["fitted"]
    if values is None:
        return None
    shares, numbers = values.get("shares"), (values.get("top1"), values.get("flops_ratio"))
    if not isinstance(shares, list) or not all(_is_number(n) for n in (*shares, *numbers)):
        raise CheckpointError(f"{file}: its fitted is {shown(values)}; save it again.")
    conversion = described["conversion"]
    return Fitted(
        networks=tuple(cascade.networks),
        thresholds=tuple(cascade.thresholds.tolist()),
        mean=cascade.mean,
        levels=None if conversion is None else tuple(levels_in(file, described)),
        top1=float(values["top1"]),
        flops_ratio=float(values["flops_ratio"]),
        shares=tuple(map(float, shares)),
        conversion=None if conversion is None else conversion_in(file, conversion),
    )


def levels_in(file: Path, described: Mapping[str, Any]) -> list[Level | Tensor]:
    """Return the levels that a file names, one for each network.

    Raises:
        CheckpointError: if it does not.
    """
    given = (described["fitted"] or {}).get("levels")
    if isinstance(given, list) and len(given) == len(described["networks"]):
        levels = [level for value in given if (level := _level(value)) is not None]
        if len(levels) == len(given):
            return levels
    raise CheckpointError(f"{file}: its levels are {shown(given)}; save it again.")


def _level(value: object) -> Level | Tensor | None:
    if isinstance(value, str) and value and set(value) <= {"0", "1"}:
        return torch.tensor([float(gate) for gate in value])
    if isinstance(value, list) and value and all(_is_number(share) for share in value):
        return tuple(value)
    return value if _is_number(value) else None  # type: ignore[return-value]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
