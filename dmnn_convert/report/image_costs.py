"""The cost of single images, by their gates or by the networks of a cascade that they asked."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..budget import Cascade, record_exits
from ..dryrun import measure
from ..errors import ArgumentError
from ..evaluation import SeenBatch
from ..flops import FlopsTable


class ImageCosts(NamedTuple):
    """The costs of a batch's images.

    Attributes:
        macs: of everything that ran for the image, (B,) int64.
        ratio: the same over the source's, (B,) float64.
        on: (B, columns) zeros and ones: the sub-blocks that ran, or the network that answered.
        levels: number of the network that answered, (B,); None for gates.
        paths: gates as text, block by block: "10|11"; None for a cascade.
    """

    macs: Tensor
    ratio: Tensor
    on: Tensor
    levels: Tensor | None
    paths: tuple[str, ...] | None


class Costing(Protocol):
    """A source of the costs of a batch's images.

    Attributes:
        columns: names of the columns of `ImageCosts.on`.
    """

    columns: tuple[str, ...]

    @property
    def most(self) -> float:
        """Ratio of the most expensive image possible; asked after the first batch."""

    def of(self, seen: SeenBatch) -> ImageCosts:
        """Return the costs of a batch that was just evaluated."""


class GateCosting:
    """The costs of gates, by a FLOPs table."""

    def __init__(self, table: FlopsTable) -> None:
        named = zip(table.blocks, table.sizes, strict=True)
        self.table = table
        self.columns = tuple(f"{block}#{n}" for block, size in named for n in range(size))

    @property
    def most(self) -> float:
        """Ratio of an image with all gates on."""
        dearest = self.table.network_flops(torch.ones(1, len(self.columns)))
        return float(dearest[0]) / self.table.dense_total

    def of(self, seen: SeenBatch) -> ImageCosts:
        """Return the costs of a batch that was just evaluated."""
        if seen.gates is None or seen.macs is None:
            raise ArgumentError(
                "explain: the model has no gates, and the table is of one that has."
            )
        gates, ratio = seen.gates.long(), seen.macs.double() / self.table.dense_total
        blocks = [part.tolist() for part in gates.split(self.table.sizes, dim=1)]
        paths = tuple(
            "|".join("".join(map(str, block[i])) for block in blocks) for i in range(len(gates))
        )
        return ImageCosts(seen.macs, ratio, gates, None, paths)


class ExitCosting(nn.Module):
    """A cascade whose images cost all the networks that they ask.

    Args:
        cascade: images (B, C, H, W) to logits.
        dense_macs: MACs of the network to compare with; None for the largest of the cascade's.
    """

    def __init__(self, cascade: Cascade, dense_macs: int | None) -> None:
        super().__init__()
        self.cascade, self.dense_macs = cascade, dense_macs
        self.columns = tuple(f"network {i}" for i in range(len(cascade.networks)))
        self.macs: list[int] = []
        self.levels = torch.zeros(0, dtype=torch.long)

    def forward(self, images: Tensor) -> Any:
        """Return the cascade's answers, and note which networks gave them."""
        with record_exits(self.cascade) as exits:
            answers = self.cascade(images)
        self.levels = exits.levels.cpu()
        return answers

    @property
    def most(self) -> float:
        """Ratio of an image that asks all networks."""
        return sum(self.macs) / self.dense

    @property
    def dense(self) -> int:
        """MACs of the network to compare with."""
        return max(self.macs) if self.dense_macs is None else self.dense_macs

    def of(self, seen: SeenBatch) -> ImageCosts:
        """Return the costs of a batch that was just evaluated."""
        if not self.macs:
            size = tuple(seen.images.shape[1:])
            self.macs = [measure(network, size).macs[""] for network in self.cascade.networks]
        macs = torch.tensor(self.macs).cumsum(0)[self.levels]
        on = torch.nn.functional.one_hot(self.levels, len(self.columns))
        return ImageCosts(macs, macs.double() / self.dense, on, self.levels, None)
