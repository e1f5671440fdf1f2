"""The parts that a block is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from .narrow import Ends


@dataclass(frozen=True)
class Parts:
    """The parts of a branch, which a `MultiPathBlock` runs.

    Attributes:
        sub_blocks: the parts of the branch.
        trunk: layers that the sub-blocks share. May be None.
        squeeze: runs on the sums that the sub-blocks wait for half-way; None if they do not.
        shared_norm: the tail norm, if it runs once, on the gated sum.
        post: runs once on the gated sum, after the norm. May be None.
        post_keeps_zeros: whether `post` maps zeros to zeros.
        tail_norm: path of the tail norm in every sub-block, or in `shared_norm`; None without one.
        dense_weights: per layer of a sub-block (by its path), how many weights its source has.
    """

    sub_blocks: tuple[nn.Module, ...]
    trunk: nn.Module | None = None
    squeeze: nn.Module | None = None
    shared_norm: nn.Module | None = None
    post: nn.Module | None = None
    post_keeps_zeros: bool = True
    tail_norm: str | None = None
    dense_weights: Mapping[str, int] = field(default_factory=dict)

    @property
    def N(self) -> int:
        """Number of sub-blocks."""
        return len(self.sub_blocks)


@dataclass(frozen=True)
class NestedParts:
    """The ordered branch that a `NestedBlock` runs.

    Attributes:
        N: number of sub-blocks.
        body: the branch, its hidden channels in the order in which sub-blocks add them. Its last
            input is gates (B, N), or None.
        ends: where its layers are cut, by their paths in it.
    """

    N: int
    body: nn.Module
    ends: Mapping[str, Ends]
