"""Parsers for the values of the command's options."""

from __future__ import annotations

import re

import click

from ..foreign import shown


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
