"""A saved network of any kind: converted, a cascade or dense."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn

from ..data import image_size
from ..errors import ArgumentError
from ..finetune import Recipe
from ..flops import FlopsTable
from ..io import (
    CASCADE,
    WEIGHTS,
    Cascade,
    load,
    load_source_checkpoint,
    read_described,
    read_saved,
    zoo,
)
from ..io import CONFIG as CONVERSION


class SavedNetwork(NamedTuple):
    """A saved network.

    Attributes:
        model: a converted network, a cascade, or a dense network.
        table: of a converted network; None for others.
        source: the network that a cascade was made from, with any weights; None for others.
    """

    model: nn.Module
    table: FlopsTable | None = None
    source: nn.Module | None = None

    @property
    def described_by(self) -> nn.Module:
        """The network whose description says how images are prepared."""
        return self.model if self.source is None else self.source

    def image_size(self, recipe: Recipe, directory: Path) -> tuple[int, ...]:
        """Return the shape (C, H, W) of one image.

        Raises:
            ArgumentError: if the recipe's size is not the one that the network was converted for.
        """
        if self.table is None:
            return image_size(recipe, self.described_by)
        if recipe.input_size not in (None, self.table.input_size[-1]):
            raise ArgumentError(
                f"--input-size {recipe.input_size}: {directory} is for images "
                f"{self.table.input_size}; leave it out."
            )
        return self.table.input_size


def read_network(directory: Path, recipe: Recipe) -> SavedNetwork:
    """Load a converted network with its table, a cascade, or a dense network from its weights.

    Raises:
        ArgumentError: if the source cannot be built by name.
        CheckpointError: if the directory holds none of these.
    """
    if (directory / CASCADE).is_file():
        described = read_described(directory / CASCADE)
        source = built(directory, described["arch"], described["num_classes"], recipe)
        # The network that takes the weights is frozen and cut; this one stays whole.
        other = built(directory, described["arch"], described["num_classes"], recipe)
        return SavedNetwork(Cascade.load(directory, source), source=other)
    if (directory / WEIGHTS).is_file() and not (directory / CONVERSION).exists():
        model = built(directory, None, recipe.num_classes, recipe)
        load_source_checkpoint(model, directory / WEIGHTS)
        return SavedNetwork(model)
    saved = read_saved(directory)
    return SavedNetwork(
        *load(directory, model=built(directory, saved.arch, saved.num_classes, recipe))
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
