"""Categories named by one word, as in a command or a recipe."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..errors import ArgumentError
from .cluster import clusters, trained_classifier
from .file import read_categories
from .mapping import Categories, check_class_names
from .published import cifar100, cifar100_classes, imagenet58, imagenet_synsets

_PUBLISHED = {
    "imagenet58": (imagenet58, imagenet_synsets),
    "cifar100": (cifar100, cifar100_classes),
}


_WORDS = '"imagenet58", "cifar100", "clusters:K" (such as "clusters:20")'


def categories_from(
    spec: str | os.PathLike[str],
    *,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    classifier: nn.Module | None = None,
) -> Categories:
    """Return the big categories that a word or a file describes.

    Args:
        spec: "imagenet58", "cifar100", "clusters:K" for K clusters of a classifier's rows, or the
            path of a file that `read_categories` reads.
        num_classes: number of classes that the model tells apart.
        class_names: name of each class, in class order; None if unknown.
        classifier: the trained source model; "clusters:K" reads the linear layer or 1x1
            convolution that makes its logits.

    Raises:
        ArgumentError: if the number, names or order of the classes do not fit, there is nothing to
            cluster, K is out of range, or the file does not exist or fit.

    Example:
        >>> categories = categories_from("clusters:3", num_classes=10, classifier=source)
        >>> categories.count
        3
    """
    call = f"categories_from({str(spec)!r})"
    if not isinstance(spec, str | os.PathLike):
        raise ArgumentError(f"{call}: got a {type(spec).__name__}; give a file or one of {_WORDS}.")
    check_class_names(class_names, num_classes, call)
    word, _, count = str(spec).partition(":")
    if str(spec) in _PUBLISHED:
        return _published(str(spec), num_classes, class_names)
    if word == "clusters":
        return _clusters(call, count, num_classes, class_names, classifier)
    if not Path(spec).is_file():
        raise ArgumentError(f"{call}: no such file; give one, or one of {_WORDS}.")
    return read_categories(spec, class_names, num_classes)


def _published(spec: str, num_classes: int, class_names: Sequence[str] | None) -> Categories:
    get, classes = _PUBLISHED[spec]
    categories = get()
    if len(categories.labels) != num_classes:
        raise ArgumentError(
            f'categories_from("{spec}"): is for {len(categories.labels)} classes, but there are '
            f'{num_classes}; give "clusters:K" or a file of your own.'
        )
    known = classes()
    if class_names is not None and set(class_names) == set(known) and list(class_names) != known:
        raise ArgumentError(
            f'categories_from("{spec}"): the classes are in another order than {known[0]}, '
            f"{known[1]}, …; sort them, or give a file of your own."
        )
    return categories


def _clusters(
    call: str,
    count: str,
    num_classes: int,
    class_names: Sequence[str] | None,
    classifier: nn.Module | None,
) -> Categories:
    if not (re.fullmatch("[0-9]{1,9}", count) and 2 <= int(count) <= num_classes):
        raise ArgumentError(
            f"{call}: give the number of clusters from 2 to {num_classes}, the number of classes, "
            'as in "clusters:20".'
        )
    if classifier is None:
        raise ArgumentError(
            f"{call}: there is no model to take the classifier's weights from; give the trained "
            "source model as classifier=."
        )
    return clusters(trained_classifier(classifier, num_classes), int(count), class_names)
