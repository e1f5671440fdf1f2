"""The evaluation of a saved network, and of what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..data import image_size, images, preprocessing, test_loader, test_transform
from ..distributed import Processes
from ..errors import ArgumentError
from ..evaluation import DenseEvaluation, Evaluation, evaluate, evaluate_dense
from ..finetune import EvaluationBatches, Recipe, build_source, check_logits, evaluation_options
from ..flops import FlopsTable
from ..io import CONFIG as CONVERSION
from ..io import WEIGHTS, load, load_source_checkpoint, read_saved, zoo
from ..nn import force_gates
from ..report import EvaluationReport


def assess(
    recipe: Recipe, directory: Path, processes: Processes, *, dense: bool, frozen: bool
) -> EvaluationReport:
    """Evaluate a saved network, and what it is compared with, on a recipe's test images.

    Raises:
        ArgumentError: if the data or the source cannot be had.
        CheckpointError: if the directory holds no converted network.
    """
    model, table = loaded(directory, recipe)
    if frozen and table is None:
        raise ArgumentError(f"--frozen: {directory} holds a network without gates.")
    source = _source(recipe) if dense else None
    size = _image_size(recipe, directory, model, table)
    test, classes = images.open_test(recipe)
    check_logits(recipe, model, size, len(classes))
    transform = test_transform(preprocessing(recipe, model, size[-1]))
    loader = test_loader(recipe, test, transform, processes)
    batches = EvaluationBatches(recipe, loader, processes)
    options = evaluation_options(recipe, classes, processes)
    model.to(processes.device)
    if table is None:
        found, fixed = evaluate_dense(model, batches, **options), None
    else:
        found, fixed = _with_gates(model, table, batches, options, frozen=frozen)
    before = None
    if source is not None:
        before = evaluate_dense(source.to(processes.device), batches, **options)
    return EvaluationReport(str(directory), found, before, fixed, batches.all_skipped())


def _with_gates(
    model: nn.Module,
    table: FlopsTable,
    batches: EvaluationBatches,
    options: Mapping[str, Any],
    *,
    frozen: bool,
) -> tuple[DenseEvaluation, Evaluation | None]:
    found = evaluate(model, table, batches, **options)
    if not frozen:
        return found, None
    with force_gates(model, found.frozen_path):
        return found, evaluate(model, table, batches, **options)


def _source(recipe: Recipe) -> nn.Module:
    if not recipe.trained:
        raise ArgumentError("--source: the source's weights are missing; give --checkpoint FILE.")
    source, new_classifier = build_source(recipe)
    if new_classifier:
        raise ArgumentError(
            f"--source: with {recipe.num_classes} classes the source has a new classifier, which "
            "was never trained: there is nothing to compare with."
        )
    return source


def _image_size(
    recipe: Recipe, directory: Path, model: nn.Module, table: FlopsTable | None
) -> tuple[int, ...]:
    if table is None:
        return image_size(recipe, model)
    if recipe.input_size not in (None, table.input_size[-1]):
        raise ArgumentError(
            f"--input-size {recipe.input_size}: {directory} is for images {table.input_size}; "
            "leave it out."
        )
    return table.input_size


def loaded(directory: Path, recipe: Recipe) -> tuple[nn.Module, FlopsTable | None]:
    """Load a converted network with its table, or a dense one from its weights alone.

    Raises:
        ArgumentError: if the source cannot be had.
        CheckpointError: if the directory holds neither.
    """
    if (directory / WEIGHTS).is_file() and not (directory / CONVERSION).exists():
        model = built(directory, None, None, recipe)
        load_source_checkpoint(model, directory / WEIGHTS)
        return model, None
    saved = read_saved(directory)
    return load(directory, model=built(directory, saved.arch, saved.num_classes, recipe))


def built(directory: Path, arch: str | None, num_classes: int | None, recipe: Recipe) -> nn.Module:
    """Return a fresh source of what a directory holds.

    Args:
        directory: for the error.
        arch: the name saved there. One that is not of the zoos gives way to the recipe's.
        num_classes: saved there; None for the recipe's.
        recipe: names what was not saved.

    Raises:
        ArgumentError: if no architecture is named.
    """
    named = arch if arch and zoo.is_zoo_name(arch) else recipe.arch
    if named is None:
        raise ArgumentError(f"{directory}: does not name an architecture of the zoos; give --arch.")
    return zoo.build(named, num_classes=recipe.num_classes if num_classes is None else num_classes)
