"""The networks of a run: the source, its conversion, and a teacher."""

from __future__ import annotations

import copy
import os
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import zoo
from ..categories import Categories, categories_from
from ..classifier import classifier_of
from ..config import GateConfig
from ..convert import Dynamized, dynamize
from ..count import example_images
from ..errors import ArgumentError, CheckpointError
from ..flops import FlopsTable
from ..probe import in_evaluation
from ..source import load_source_checkpoint
from .augmentation import image_size
from .converted import load_converted
from .recipe import Recipe


class Networks(NamedTuple):
    """What a run trains, and what it learns from.

    Attributes:
        model: the converted network; the source itself where a recipe trains that (n = 0).
        table: its FLOPs table; None for the source.
        source: the source as it was loaded.
        categories: big categories for the controllers; None without category supervision.
        teacher: what it learns from; the source, unless a recipe names another network.
        at_source: whether the model has a trained source's weights, which nothing has changed
            since, so that it can be brought nearer to it before training.
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
            f"Recipe(distill={recipe.distill}): there is no trained source to learn from; give "
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
    return dynamize(
        source,
        n,
        split=split,
        gate=_gate(recipe),
        input_size=image_size(recipe, source),
        where=recipe.where or None,
        num_categories=categories,
        tail_norm=tail_norm,
        order=recipe.order,
    )


def _gate(recipe: Recipe) -> GateConfig:
    if recipe.levels:
        # Controllers as they start turn all sub-blocks on, and nothing trains them.
        return GateConfig(hidden=recipe.hidden, chained=recipe.chained)
    return GateConfig(
        hidden=recipe.hidden,
        tau=recipe.tau,
        init_rate=recipe.start_rate,
        chained=recipe.chained,
        normalized=recipe.normalized,
        spread=recipe.spread,
        certainty=recipe.certainty,
    )


def _build_teacher(recipe: Recipe, classes: int) -> nn.Module:
    teacher = zoo.build(str(recipe.teacher))
    load_source_checkpoint(teacher, str(recipe.teacher_checkpoint))
    outputs = classes_of(teacher)
    if outputs not in (None, classes):
        raise ArgumentError(
            f"Recipe(teacher={recipe.teacher!r}): tells {outputs} classes apart, but the data has "
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
        remedy = f"convert anew, with --num-classes {classes} and without --converted."
    raise ArgumentError(
        f"{recipe.arch}: tells {outputs} classes apart, but the data has {classes}; {remedy}"
    )


def check_logits(recipe: Recipe, model: nn.Module, size: tuple[int, ...], classes: int) -> None:
    """Check on one image (C, H, W) that a network returns a logit for each of the data's classes.

    Raises:
        ArgumentError: if it does not.
    """
    try:
        with in_evaluation(model):
            logits = model(example_images(model, size, batch=1))
    except RuntimeError as error:
        raise ArgumentError(
            f"Recipe(input_size={recipe.input_size}): the network does not run on images {size} "
            f"({str(error).splitlines()[0]}); give --input-size."
        ) from error
    if isinstance(logits, Tensor) and logits.shape != (1, classes):
        raise ArgumentError(
            f"{recipe.data}: has {classes} classes, but the network returns {tuple(logits.shape)} "
            "for one image; give images of the classes that it was trained on."
        )


def _check_classifier(recipe: Recipe) -> None:
    """Check that nothing is to be learned from a classifier that is new."""
    from_source = recipe.alpha > 0 and recipe.teacher is None
    if from_source or (recipe.categories or "").startswith("clusters:"):
        raise ArgumentError(
            f"Recipe(num_classes={recipe.num_classes}): the source's classifier is not trained, so "
            "that there is nothing to learn from it; give --checkpoint FILE of one that is (-N 0 "
            "trains one), or --distill 0 and no clusters."
        )


class Source(NamedTuple):
    """A source network, and whether its classifier is new, so that it knows nothing yet."""

    model: nn.Module
    new_classifier: bool


def build_source(recipe: Recipe) -> Source:
    """Build the source network with its weights.

    Raises:
        ArgumentError: if the recipe names no architecture, or asks for two sets of weights.
        CheckpointError: if the weights do not fit.
    """
    if recipe.arch is None:
        raise ArgumentError("Recipe(arch=None): name the source network, --arch resnet50.")
    if recipe.checkpoint and recipe.pretrained:
        raise ArgumentError("Recipe: give checkpoint= or pretrained=, not both.")
    if recipe.weights == "own" and (recipe.checkpoint or recipe.pretrained):
        raise ArgumentError("Recipe(weights='own'): the factory's; give no others beside them.")
    if recipe.weights == "own" or not recipe.trained:
        built = zoo.build(recipe.arch, num_classes=recipe.num_classes)
        return Source(built, not recipe.trained)
    if recipe.checkpoint:
        return _from_checkpoint(recipe.arch, recipe.checkpoint, recipe.num_classes)
    model = zoo.build(recipe.arch, num_classes=recipe.num_classes, pretrained=True)
    config = getattr(model, "pretrained_cfg", None) or {}
    own = config.get("num_classes", recipe.num_classes)
    return Source(model, recipe.num_classes not in (None, own))


def _from_checkpoint(
    arch: str, checkpoint: str | os.PathLike[str], num_classes: int | None
) -> Source:
    source = zoo.build(arch, num_classes=num_classes)
    try:
        load_source_checkpoint(source, checkpoint)
    except CheckpointError:
        if num_classes is None:
            raise
        source = zoo.build(arch)  # the checkpoint may be of the architecture's own classes
        load_source_checkpoint(source, checkpoint)
        replace_classifier(source, num_classes)
        return Source(source, True)
    return Source(source, False)


def classes_of(model: nn.Module) -> int | None:
    """Return how many classes a network tells apart; None if its last layer does not say."""
    found = classifier_of(model)
    return None if found is None else found.classes


def replace_classifier(model: nn.Module, num_classes: int) -> None:
    """Give a network a new last layer, in place.

    Raises:
        ArgumentError: if it has no linear or 1×1 layer at its end.
    """
    found = classifier_of(model)
    if found is None:
        raise ArgumentError(
            f"{type(model).__name__}: has no last linear layer to replace; build it with the "
            "right number of classes."
        )
    old, bias = found.layer, found.layer.bias is not None
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, num_classes, bias)
    else:
        new = type(old)(old.in_channels, num_classes, 1, bias=bias)  # type: ignore[call-arg, arg-type]
    parent, _, child = found.path.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
