"""A converted model's record of its conversion: the one door to its config and FLOPs table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from ..config import DynamizeConfig

_KEY = "dmnn_conversion"


class CostTable(Protocol):
    """The part of a model's FLOPs table that is used here."""

    @property
    def gated(self) -> int:
        """FLOPs of one image behind gates, with all gates on."""

    @property
    def input_size(self) -> tuple[int, ...]:
        """Shape of one image that the counts hold for."""

    @property
    def dense_total(self) -> int:
        """FLOPs of the source."""

    def flops(self, gates: Tensor) -> Tensor:
        """Return the gated FLOPs of each image, (B,)."""

    def network_flops(self, gates: Tensor) -> Tensor:
        """Return the FLOPs of the whole network for each image, (B,)."""


class Conversion(NamedTuple):
    """The record of a conversion.

    Attributes:
        config: the settings, with the names of the blocks that were converted.
        table: its FLOPs table.
        left: blocks and near misses that stayed dense -> why.
    """

    config: DynamizeConfig
    table: CostTable
    left: Mapping[str, str]


def attach(
    model: nn.Module, config: DynamizeConfig, table: CostTable, left: Mapping[str, str]
) -> None:
    """Attach the record of its conversion to a model; copies and pickles keep it."""
    vars(model)[_KEY] = Conversion(config, table, dict(left))


def detach(model: nn.Module) -> None:
    """Remove the record of a conversion from a model."""
    vars(model).pop(_KEY, None)


def conversion_of(model: nn.Module) -> Conversion | None:
    """Return the conversion of this very model; None for wrappers, parts and plain networks."""
    carried: Conversion | None = vars(model).get(_KEY)
    return carried


def conversion_within(model: nn.Module) -> Conversion | None:
    """Return the conversion of a model or of one that it contains (a detector, a DDP wrapper)."""
    return next(filter(None, map(conversion_of, model.modules())), None)
