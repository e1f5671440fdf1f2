"""Rows of the FLOPs table."""

from __future__ import annotations

from dataclasses import dataclass

from ..dryrun import Shape


@dataclass(frozen=True)
class Row:
    """The cost of one sub-block.

    Attributes:
        block: the block's name.
        sub_block: its number in the block.
        macs: multiply-accumulates for one image.
        params: parameters.
        input_shape: shape of one input, e.g. (C, H, W).
        output_shape: shape of one output.
        stage: number of times the spatial size had changed before the block's output.
    """

    block: str
    sub_block: int
    macs: int
    params: int
    input_shape: Shape
    output_shape: Shape
    stage: int


@dataclass(frozen=True)
class Trunk:
    """The cost of layers that run if any sub-block of their block runs."""

    block: str
    macs: int
    params: int


@dataclass(frozen=True)
class FixedRow:
    """The cost of a part that always runs."""

    name: str
    macs: int
    params: int
