"""The directory of a saved network, and the recipe of the run that wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from ..finetune import CONFIG, Recipe, read_recipe
from .finetune import chosen


def with_directory(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument DIRECTORY, and the option --config."""
    config = click.option(
        "--config",
        metavar="FILE",
        help=f"Options of the data and the source as YAML.  [{CONFIG} beside DIRECTORY, if there]",
    )
    there = click.Path(path_type=Path, file_okay=False, exists=True)
    return click.argument("directory", type=there)(config(command))


def recipe_for(directory: Path, config: str | None, given: Mapping[str, Any]) -> Recipe:
    """Return the options of a run, or of a file, with those of the command line."""
    options = read_recipe(config) if config else _found_beside(directory.parent / CONFIG)
    return Recipe().with_changes(options | chosen(given))


def same_options(directory: Path, config: str | None, given: Mapping[str, Any]) -> str:
    """Return the words by which another command finds the source and prepares images likewise."""
    beside = directory.parent / CONFIG
    file = config or (str(beside) if beside.is_file() else None)
    words = f" --config {file}" if file else ""
    for name in ("mean", "std") if file else ("arch", "num_classes", "mean", "std"):
        if value := given.get(name):
            numbers = ",".join(map(str, value)) if isinstance(value, tuple) else value
            words += f" --{name.replace('_', '-')} {numbers}"
    return words


def _found_beside(file: Path) -> dict[str, Any]:
    """Return the options of a run's recipe, but for an architecture that is code to run."""
    if not file.is_file():
        return {}
    options = read_recipe(file)
    from ..io import zoo

    if options.get("arch") and not zoo.is_zoo_name(options["arch"]):
        click.echo(
            f"{file} names {options['arch']}, which is code; --arch or --config allows it to run.",
            err=True,
        )
        del options["arch"]
    return options
