"""The size of an image as every command takes it: 32, 3x32x32 or 3,32,32."""

from __future__ import annotations

import re

import click

from ..dryrun import Shape
from ..foreign import shown
from .option import UNSET

FORMS = "32, 3x32x32 or 3,32,32"


def image_size(text: str) -> Shape:
    """Return the shape (C, ...) that a text means; one number is a square of three channels.

    Raises:
        click.BadParameter: if it means none.
    """
    parts = re.split(r"[,x×]", text.strip())
    if not all(re.fullmatch("[0-9]{1,9}", part.strip()) and int(part) for part in parts):
        raise click.BadParameter(f"{shown(text)}: give {FORMS}.")
    sizes = tuple(int(part) for part in parts)
    return (3, sizes[0], sizes[0]) if len(sizes) == 1 else sizes


def picture_size(text: str) -> int | str:
    """Return the pixels per side that a text means, or the word for no size of its own.

    Raises:
        click.BadParameter: if it is not a square of three channels, as pictures are read.
    """
    if text == UNSET:
        return text
    shape = image_size(text)
    if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
        raise click.BadParameter(
            f"{shown(text)}: pictures are read in three channels and made square; give {FORMS}."
        )
    return shape[1]
