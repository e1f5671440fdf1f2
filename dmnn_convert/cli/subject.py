"""A saved network with images to choose budgets on and images to measure them on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import click
from torch import nn

from ..data import images, preprocessing, test_loader, test_transform
from ..distributed import Processes
from ..errors import ArgumentError
from ..finetune import EvaluationBatches, Recipe, check_logits
from ..io import load, read_saved
from .saved import built, check_size

_HELD_OUT = 0.1
"""Share of the training images that budgets are chosen by, where a run held none out."""


class Subject(NamedTuple):
    """A saved network and its images.

    Attributes:
        model: converted, on the device.
        held_out: batches of training images that were held out.
        test: batches of test images.
        arch: the source's name, if it was saved with one.
        num_classes: classes that the source was built with, if not its default.
    """

    model: nn.Module
    held_out: EvaluationBatches
    test: EvaluationBatches
    arch: str | None
    num_classes: int | None


def opened(recipe: Recipe, directory: Path, processes: Processes) -> Subject:
    """Load a saved network and open its images.

    Raises:
        ArgumentError: if the data or the source is missing, or nothing is held out.
        CheckpointError: if the directory holds no converted network.
    """
    if processes.count > 1:
        raise ArgumentError("budgets are chosen in one process; start without torchrun.")
    if not recipe.held_out:
        recipe = recipe.with_changes({"held_out": _HELD_OUT})
        click.echo(
            f"{directory}: its run held no images out; the choice is made on {_HELD_OUT:.0%} of "
            "the training images, which the network may know better than new ones. "
            "finetune --held-out keeps some apart.",
            err=True,
        )
    saved = read_saved(directory)
    model, table = load(directory, model=built(directory, saved.arch, saved.num_classes, recipe))
    check_size(recipe, directory, table.input_size)
    data = images.open_data(recipe)
    if not len(data.held_out):  # type: ignore[arg-type]
        raise ArgumentError(
            f"--held-out {recipe.held_out}: is less than one image; give a larger share."
        )
    check_logits(recipe, model, table.input_size, len(data.classes))
    transform = test_transform(preprocessing(recipe, model, table.input_size[-1]))
    held_out, test = (
        EvaluationBatches(recipe, test_loader(recipe, some, transform, processes), processes)
        for some in (data.held_out, data.test)
    )
    model = model.to(processes.device).eval()
    return Subject(model, held_out, test, saved.arch, saved.num_classes)
