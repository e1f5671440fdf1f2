"""A saved network of any kind: converted, a cascade or dense."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import nn

from ..data import image_size
from ..errors import ArgumentError, CheckpointError
from ..finetune import Recipe
from ..flops import FlopsTable
from ..io import (
    CASCADE,
    LEVEL,
    TABLE,
    WEIGHTS,
    Cascade,
    load,
    load_level,
    load_source_checkpoint,
    read_described,
    read_saved,
    zoo,
)
from ..io import CONFIG as CONVERSION


class SavedNetwork(NamedTuple):
    """A saved network.

    Attributes:
        model: a converted network, a cascade, a level, or a dense network.
        build: returns a fresh source of it, with any weights, each time.
        size: (C, H, W) of the images that it was converted for; None for a dense network.
        table: of a converted network; None for others.
    """

    model: nn.Module
    build: Callable[[], nn.Module]
    size: tuple[int, ...] | None = None
    table: FlopsTable | None = None

    @property
    def described_by(self) -> nn.Module:
        """The network that says how images are prepared: one that is whole."""
        return self.model if self.size is None or self.table is not None else self.build()

    def image_size(self, recipe: Recipe, directory: Path) -> tuple[int, ...]:
        """Return the shape (C, H, W) of one image.

        Raises:
            ArgumentError: if the recipe's size is not the one that the network was converted for.
        """
        if self.size is None:
            return image_size(recipe, self.model)
        check_size(recipe, directory, self.size)
        return self.size


def check_size(recipe: Recipe, directory: Path, size: tuple[int, ...]) -> None:
    """Check that a recipe asks for images of the size that a network was converted for.

    Raises:
        ArgumentError: if it asks for others.
    """
    if recipe.input_size not in (None, size[-1]):
        raise ArgumentError(
            f"--input-size {recipe.input_size}: {directory} is for images {size}; leave it out."
        )


def read_network(directory: Path, recipe: Recipe) -> SavedNetwork:
    """Load a converted network with its table, a cascade, a level, or a dense network's weights.

    Raises:
        ArgumentError: if the source cannot be built by name.
        CheckpointError: if the directory holds none of these, or several.
    """
    _check_one_kind(directory)
    for name, load_plain in ((CASCADE, Cascade.load), (LEVEL, load_level)):
        if (directory / name).is_file():
            described = read_described(directory / name)
            if described["conversion"] is None:
                raise ArgumentError(
                    f"{directory}: is a cascade of networks of your own, which no name builds. "
                    "Load it in Python, Cascade.load(directory, [network, ...]), and give it to "
                    "dmnn_convert.deploy or dmnn_convert.explain."
                )
            named = (directory, described["arch"], described["num_classes"], recipe)
            plain = load_plain(directory, built(*named))
            size = tuple(described["conversion"]["input_size"])
            return SavedNetwork(plain, partial(built, *named), size)
    if (directory / WEIGHTS).is_file() and not (directory / CONVERSION).exists():
        build = partial(built, directory, None, recipe.num_classes, recipe)
        model = build()
        load_source_checkpoint(model, directory / WEIGHTS)
        return SavedNetwork(model, build)
    saved = read_saved(directory)
    build = partial(built, directory, saved.arch, saved.num_classes, recipe)
    model, table = load(directory, model=build())
    return SavedNetwork(model, build, table.input_size, table)


def _check_one_kind(directory: Path) -> None:
    kinds = {CASCADE: "a cascade", LEVEL: "a level", TABLE: "a converted network"}
    found = {name: kind for name, kind in kinds.items() if (directory / name).is_file()}
    if len(found) > 1:
        raise CheckpointError(
            f"{directory}: holds {' and '.join(found.values())} ({', '.join(found)}), one saved "
            "over the other. Delete the file of what is not meant, or save into a new directory."
        )


def built(directory: Path, arch: str | None, classes: int | None, recipe: Recipe) -> nn.Module:
    """Return a fresh source of the network in a directory.

    Args:
        directory: for the error.
        arch: the name saved there. The recipe's replaces one that is not of the zoos.
        classes: saved there; None for the recipe's.
        recipe: gives whatever was not saved.

    Raises:
        ArgumentError: if no architecture is named.
    """
    # A factory's name runs code; only names of the zoos may come from a file.
    named = arch if arch and zoo.is_zoo_name(arch) else recipe.arch
    if named is None:
        raise ArgumentError(f"{directory}: does not name an architecture of the zoos; give --arch.")
    return zoo.build(named, num_classes=recipe.num_classes if classes is None else classes)
