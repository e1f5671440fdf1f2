"""The networks of a run: the source, its conversion, and a teacher."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..categories import Categories, categories_from
from ..config import DynamizeConfig, GateConfig
from ..convert import Dynamized, convert
from ..data import DataOptions, image_size
from ..dryrun import example_images
from ..errors import ArgumentError
from ..flops import FlopsTable
from ..foreign import logits_in
from ..graph import undone
from ..io import load_source_checkpoint, zoo
from ..nn import in_evaluation
from ..text import first_line
from .option_groups import DistillationOptions, GateOptions
from .recipe import Recipe
from .saved_conversion import load_converted
from .source import build_source, classes_of


class Networks(NamedTuple):
    """The network that a run trains, and those that it learns from.

    Attributes:
        model: the converted network; the source itself where a recipe trains that (n = 0).
        table: its FLOPs table; None for the source.
        source: the source as it was loaded.
        categories: big categories for the controllers; None without category supervision.
        teacher: the network to learn from; the source, unless a recipe names another one.
        at_source: whether the model still has a trained source's weights. It can then be brought
            closer to the source before training.
    """

    model: nn.Module
    table: FlopsTable | None
    source: nn.Module
    categories: Categories | None
    teacher: nn.Module
    at_source: bool = False


def build_networks(recipe: Recipe, classes: tuple[str, ...]) -> Networks:
    """Build the source as a recipe says, and convert it.

    Raises:
        ArgumentError: if there is no architecture, or its classes are not the data's.
        CheckpointError: if the weights do not fit.
        ConversionError: if it cannot be converted.
    """
    if recipe.alpha and not (recipe.teacher or recipe.trained):
        raise ArgumentError(
            f"{recipe.call('distill')}: there is no trained source to learn from; give "
            "--checkpoint FILE or --pretrained, or --teacher, or --distill 0."
        )
    source, new_classifier = build_source(recipe)
    if new_classifier:
        _check_classifier(recipe)
    _check_classes(recipe, classes_of(source), len(classes))
    other = recipe.teacher is not None and recipe.alpha > 0
    teacher = _build_teacher(recipe, len(classes)) if other else source
    categories = None
    if recipe.categories is not None and not recipe.dense:
        categories = categories_from(
            recipe.categories,
            num_classes=len(classes),
            class_names=classes,
            classifier=source,
        )
    if recipe.dense:
        return Networks(copy.deepcopy(source), None, source, None, teacher)
    count = None if categories is None else categories.count
    if recipe.converted is None:
        model, table = _converted(recipe, source, count)
    else:
        model, table = load_converted(recipe, count)
    at_source = recipe.trained and _same_weights(model, source)
    return Networks(model, table, source, categories, teacher, at_source)


def _converted(recipe: Recipe, source: nn.Module, categories: int | None) -> Dynamized:
    n, split, tail_norm = recipe.split_up
    config = DynamizeConfig(
        n,
        split,
        _gate(recipe, gated=recipe.gated),
        image_size(recipe, source),
        num_categories=categories,
        tail_norm=tail_norm,
        order=recipe.order,
    )
    return convert(source, config, recipe.where or None)


def _gate(options: GateOptions, *, gated: bool) -> GateConfig:
    if not gated:
        # Untrained controllers turn all sub-blocks on, and nothing trains these.
        return GateConfig(hidden=options.hidden, chained=options.chained)
    return GateConfig(
        hidden=options.hidden,
        tau=options.tau,
        init_rate=options.start_rate,
        chained=options.chained,
        normalized=options.normalized,
        spread=options.spread,
        certainty=options.certainty,
    )


def _build_teacher(options: DistillationOptions, classes: int) -> nn.Module:
    teacher = zoo.build(str(options.teacher))
    load_source_checkpoint(teacher, str(options.teacher_checkpoint))
    outputs = classes_of(teacher)
    if outputs not in (None, classes):
        raise ArgumentError(
            f"{options.call('teacher')}: tells {outputs} classes apart, but the data has "
            f"{classes}; give a teacher of these classes."
        )
    return teacher


def _same_weights(model: nn.Module, source: nn.Module) -> bool:
    """Return whether layers that a conversion leaves alone have the source's parameters."""
    theirs = dict(source.named_parameters())
    kept = [(p, theirs[name]) for name, p in model.named_parameters() if name in theirs]
    return all(torch.equal(mine, other) for mine, other in kept)


def _check_classes(recipe: Recipe, outputs: int | None, classes: int) -> None:
    if outputs in (None, classes):
        return
    remedy = f"--num-classes {classes} replaces its classifier."
    if recipe.converted is not None:
        remedy = f"convert again, with --num-classes {classes} and without --converted."
    raise ArgumentError(
        f"{recipe.arch}: tells {outputs} classes apart, but the data has {classes}; {remedy}"
    )


def check_logits(
    options: DataOptions, model: nn.Module, size: tuple[int, ...], classes: int
) -> None:
    """Check on one image (C, H, W) that a network returns a logit for each of the data's classes.

    Raises:
        ArgumentError: if it does not.
    """
    try:
        with undone(model, whole=True), in_evaluation(model):
            logits = logits_in(model(example_images(model, size, batch=1)))
    except RuntimeError as error:
        raise ArgumentError(
            f"{options.call('input_size')}: the network does not run on images {size} "
            f"({first_line(error)}); give --input-size."
        ) from error
    if isinstance(logits, Tensor) and logits.shape != (1, classes):
        raise ArgumentError(
            f"{options.data}: has {classes} classes, but the network returns {tuple(logits.shape)} "
            "for one image; give images of the classes that it was trained on."
        )


def _check_classifier(recipe: Recipe) -> None:
    """Check that nothing learns from a classifier that is new."""
    from_source = recipe.alpha > 0 and recipe.teacher is None
    if from_source or (recipe.categories or "").startswith("clusters:"):
        raise ArgumentError(
            f"{recipe.call('num_classes')}: the source's classifier is not trained, so there is "
            "nothing to learn from it; give --checkpoint FILE of a trained one (-N 0 "
            "trains one), or --distill 0 and no clusters."
        )
