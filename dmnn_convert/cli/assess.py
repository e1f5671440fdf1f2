"""The evaluation of a saved network and of the networks that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..budget import Cascade
from ..categories import Categories, categories_from
from ..data import images, preprocessing, test_loader, test_transform
from ..distributed import Processes
from ..dryrun import measure
from ..errors import ArgumentError
from ..evaluation import DenseEvaluation, Evaluation, evaluate, evaluate_dense
from ..finetune import EvaluationBatches, Recipe, build_source, check_logits, evaluation_options
from ..nn import force_gates
from ..report import EvaluationReport, Explanation, checked_file, explain
from .named import NamedBatches
from .saved import read_network


def assess(
    recipe: Recipe,
    directory: Path,
    processes: Processes,
    *,
    dense: bool,
    frozen: bool,
    files: Sequence[str] = (),
) -> EvaluationReport:
    """Evaluate a saved network and those it is compared with on a recipe's test images.

    Args:
        recipe: the data, the source, and how to evaluate.
        directory: what was saved: a converted network, a cascade, a level, or a dense network.
        processes: which process this is.
        dense: whether to evaluate the source as well.
        frozen: whether to evaluate the most frequent path as well.
        files: where to write the cost of each image, as `explain` does.

    Raises:
        ArgumentError: if the data or the source is missing, or the files cannot be written.
        CheckpointError: if the directory holds no network.
    """
    for file in files:  # unwritable files are reported before the work
        checked_file(file)
    saved = read_network(directory, recipe)
    model, table = saved.model, saved.table
    if frozen and table is None:
        raise ArgumentError(f"--frozen: {directory} holds a network without gates.")
    cascade = isinstance(model, Cascade)
    if files and table is None and not cascade:
        raise ArgumentError(f"--images: {directory} holds a network that treats all images alike.")
    source = _source(recipe) if dense else None
    size = saved.image_size(recipe, directory)
    test, classes = images.open_test(recipe)
    check_logits(recipe, model, size, len(classes))
    how = preprocessing(recipe, saved.described_by, size[-1])
    loader = test_loader(recipe, test, test_transform(how), processes)
    named = NamedBatches(loader, test, recipe, processes)
    batches = EvaluationBatches(recipe, named, processes)
    options = evaluation_options(recipe, classes, processes)
    model.to(processes.device)
    exits: Explanation | None = None
    found: Evaluation | DenseEvaluation
    if files or cascade:
        explained = explain(
            model,
            batches,
            files,
            table=table,
            dense_macs=measure(saved.build(), size).macs[""] if cascade else None,
            names=named.names(),
            categories=_categories(recipe, classes, model) if files else None,
            mean=how.mean,
            std=how.std,
            title=str(directory),
            **options,
        )
        found, exits = explained.evaluation, explained if explained.exits else None
    elif table is None:
        found = evaluate_dense(model, batches, **options)
    else:
        found = evaluate(model, table, batches, **options)
    fixed = None
    if frozen and table is not None and isinstance(found, Evaluation):
        with force_gates(model, found.frozen_path):
            fixed = evaluate(model, table, batches, **options)
    before = None
    if source is not None:
        before = evaluate_dense(source.to(processes.device), batches, **options)
    return EvaluationReport(
        str(directory), found, before, fixed, batches.all_skipped(), cascade=exits
    )


def _categories(recipe: Recipe, classes: Sequence[str], model: nn.Module) -> Categories | None:
    if recipe.categories is None:
        return None
    classifier = model.networks[-1] if isinstance(model, Cascade) else model
    return categories_from(
        recipe.categories,
        num_classes=len(classes),
        class_names=classes,
        classifier=classifier,
    )


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
