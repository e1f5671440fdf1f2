"""The network that a run starts from."""

from __future__ import annotations

import os
from typing import NamedTuple

from torch import nn

from ..dryrun import classifier_of
from ..errors import ArgumentError, CheckpointError
from ..io import load_source_checkpoint, zoo
from .option_groups import NetworkOptions


class Source(NamedTuple):
    """A source network, and whether its classifier is new and untrained."""

    model: nn.Module
    new_classifier: bool


def build_source(options: NetworkOptions) -> Source:
    """Build the source network with its weights.

    Raises:
        ArgumentError: if the options name no architecture, or ask for two sets of weights.
        CheckpointError: if the weights do not fit.
    """
    if options.arch is None:
        raise ArgumentError(f"{options.call('arch')}: name the source network, --arch resnet50.")
    if options.checkpoint and options.pretrained:
        raise ArgumentError(
            f"{options.call('checkpoint', 'pretrained')}: give checkpoint= or pretrained=, "
            "not both."
        )
    if options.weights == "own" and (options.checkpoint or options.pretrained):
        raise ArgumentError(f"{options.call('weights')}: are the factory's own; give no others.")
    if options.weights == "own" or not options.trained:
        built = zoo.build(options.arch, num_classes=options.num_classes)
        return Source(built, not options.trained)
    if options.checkpoint:
        return _from_checkpoint(options.arch, options.checkpoint, options.num_classes)
    model = zoo.build(options.arch, num_classes=options.num_classes, pretrained=True)
    config = getattr(model, "pretrained_cfg", None) or {}
    own = config.get("num_classes", options.num_classes)
    return Source(model, options.num_classes not in (None, own))


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
