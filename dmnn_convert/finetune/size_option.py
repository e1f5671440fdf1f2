"""The size of an image as every command takes it: 32, 3x32x32 or 3,32,32."""

from __future__ import annotations

import re
from typing import Any

import click

from ..count import Shape
from ..foreign import shown
from .option import NONE

FORMS = "32, 3x32x32 or 3,32,32"


class ImageSize(click.ParamType):
    """A shape (C, ...); one number stands for the side of a square image of three channels."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Shape:
        """Return the shape that a text means."""
        if not isinstance(value, str):
            shape: Shape = value  # click converts what it has converted once more
            return shape
        parts = re.split(r"[,x×]", value.strip())
        if not all(re.fullmatch("[0-9]{1,9}", part.strip()) and int(part) for part in parts):
            self.fail(f"{shown(value)}: give {FORMS}.", param, ctx)
        sizes = tuple(int(part) for part in parts)
        return (3, sizes[0], sizes[0]) if len(sizes) == 1 else sizes


class PictureSize(click.ParamType):
    """Pixels a side of square pictures, which are read in three channels; or none of its own."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Return the side that a text means."""
        if value == NONE or isinstance(value, int):
            side: int | str = value
            return side
        shape = ImageSize().convert(value, param, ctx)
        if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
            self.fail(
                f"{shown(value)}: pictures are read in three channels and made square; give "
                f"{FORMS}.",
                param,
                ctx,
            )
        return shape[1]
