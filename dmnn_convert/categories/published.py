"""Big categories of well-known data sets: ImageNet-1k's from WordNet, CIFAR-100's own."""

from __future__ import annotations

import csv
import functools
from importlib import resources

from .mapping import Categories

_CIFAR100 = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}


def imagenet58() -> Categories:
    """Return 58 big categories of ImageNet-1k's classes, from WordNet's hierarchy.

    The classes are in the usual order, that of their synsets' ids. `tools/imagenet58.py` shows how
    the categories were found.

    Example:
        >>> categories = imagenet58()
        >>> categories.count, len(categories.labels)
        (58, 1000)
    """
    rows = _imagenet()
    names = {int(category): name for _, category, name in rows}
    labels = tuple(int(category) for _, category, _ in rows)
    return Categories(labels, tuple(names[i] for i in range(len(names))))


def imagenet_synsets() -> list[str]:
    """Return the ids of ImageNet-1k's classes, in class order."""
    return [synset for synset, _, _ in _imagenet()]


@functools.cache
def _imagenet() -> list[tuple[str, str, str]]:
    """Read synset, category and name of each class."""
    file = resources.files("dmnn_convert.categories").joinpath("imagenet58.csv")
    rows = csv.reader(file.read_text(encoding="utf-8").splitlines()[1:])
    return [(synset, category, name) for _, synset, category, name in rows]


def cifar100() -> Categories:
    """Return CIFAR-100's 20 superclasses of its classes, which are in alphabetical order.

    Example:
        >>> cifar100().names[cifar100().labels[0]]  # of apples
        'fruit and vegetables'
    """
    members = enumerate(_CIFAR100.values())
    label = {name: i for i, classes in members for name in classes.split()}
    return Categories(tuple(label[name] for name in cifar100_classes()), tuple(_CIFAR100))


def cifar100_classes() -> list[str]:
    """Return the names of CIFAR-100's classes, in class order."""
    return sorted(name for classes in _CIFAR100.values() for name in classes.split())
