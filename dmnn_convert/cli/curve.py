"""``dmnn-convert evaluate --curve``: every policy of a saved network over FLOPs and time."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..distributed import joined
from ..finetune import Recipe
from ..report import check_picture, curve
from .subject import opened


def draw_curve(recipe: Recipe, directory: Path, file: Path, form: str) -> None:
    """Print a saved network's curve, and write it as CSV or as a picture.

    Args:
        recipe: says where the images are.
        directory: the saved network.
        file: ending in .csv, or in the suffix of a picture's format.
        form: "table" or "json".

    Raises:
        ArgumentError: if the file cannot be written, or data or source is missing.
    """
    as_csv = file.suffix.lower() == ".csv" and file.parent.is_dir()
    if not as_csv:  # an unwritable file is reported before the work
        check_picture(file, "--curve")
    with joined(recipe.device) as processes:
        subject = opened(recipe, directory, processes)
        found = curve(subject.model, subject.test, held_out=subject.held_out, progress=True)
    click.echo(json.dumps(found.to_dict(), indent=1) if form == "json" else str(found))
    if as_csv:
        found.to_csv(file)
    else:
        found.plot(file)
