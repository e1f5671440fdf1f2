"""Parsers for the values of the command's options, and the option --quiet of every command."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from ..config import UNSET
from ..progress import quiet
from ..text import shown


def with_quiet(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option that shows no progress while the command runs."""
    return click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_silence,
        help="Show no progress; warnings and the result remain.",
    )(command)


def _silence(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        context.with_resource(quiet())


FORMS = "224, 3x224x224 or 3,224,224"


def sub_blocks(
    _: click.Context, __: click.Parameter, texts: tuple[str, ...]
) -> int | dict[str, int]:
    """Read "2" (blocks not named otherwise) and "SELECTOR=2"."""
    general: list[int] = []
    named: dict[str, int] = {}
    for text in texts:
        selector, equals, number = text.rpartition("=")
        if not re.fullmatch("-?[0-9]{1,9}", number.strip()) or selector in named:
            raise click.BadParameter(
                f"{shown(text)}: give a number, or once for each BLOCKS: BLOCKS=2."
            )
        if equals:
            named[selector] = int(number)
        else:
            general.append(int(number))
    if len(general) > 1:
        raise click.BadParameter(f"{general}: give one number for all blocks not named otherwise.")
    if not named:
        return general[0]
    return {**named, "*": general[0]} if general else named


def image_size(text: str) -> tuple[int, ...]:
    """Return the shape (C, ...) that a string gives; one number is a square of three channels.

    Raises:
        click.BadParameter: if it gives no shape.
    """
    parts = re.split(r"[,x×]", text.strip())
    if not all(re.fullmatch("[0-9]{1,9}", part.strip()) and int(part) for part in parts):
        raise click.BadParameter(f"{shown(text)}: give {FORMS}.")
    sizes = tuple(int(part) for part in parts)
    return (3, sizes[0], sizes[0]) if len(sizes) == 1 else sizes


def picture_size(text: str) -> int | str:
    """Return the pixels per side that a string gives, or the word that unsets it.

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
