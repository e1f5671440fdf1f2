"""A converted model's record of its conversion: the one door to its config and FLOPs table."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor, nn

from ..config import DynamizeConfig

_KEY = "dmnn_conversion"


class CostTable(Protocol):
    """What the FLOPs table of a model tells here."""

    @property
    def gated(self) -> int:
        """FLOPs of one image behind gates, with all gates on."""

    @property
    def dense_total(self) -> int:
        """FLOPs of the source."""

    def flops(self, gates: Tensor) -> Tensor:
        """Return the gated FLOPs of each image, (B,)."""

    def network_flops(self, gates: Tensor) -> Tensor:
        """Return the FLOPs of the whole network for each image, (B,)."""


class Conversion(NamedTuple):
    """How a model was converted.

    Attributes:
        config: what was asked for, with the names of the blocks that were converted.
        table: its FLOPs table.
    """

    config: DynamizeConfig
    table: CostTable


def attach(model: nn.Module, config: DynamizeConfig, table: CostTable) -> None:
    """Let a model carry how it was converted; copies and pickles of it carry it, too."""
    vars(model)[_KEY] = Conversion(config, table)


def detach(model: nn.Module) -> None:
    """Let a model carry no conversion any more."""
    vars(model).pop(_KEY, None)


def conversion_of(model: nn.Module) -> Conversion | None:
    """Return how a model itself was converted; None for wrappers, parts and plain networks."""
    carried: Conversion | None = vars(model).get(_KEY)
    return carried


def conversion_within(model: nn.Module) -> Conversion | None:
    """Return the conversion of a model or of one that it contains (a detector, a DDP wrapper)."""
    return next(filter(None, map(conversion_of, model.modules())), None)
