"""The big categories that gate controllers learn to predict in training (eq. 9, 10)."""

from .cluster import clusters
from .file import read_categories
from .mapping import Categories
from .published import cifar100, imagenet58
from .spec import categories_from

__all__ = [
    "Categories",
    "categories_from",
    "cifar100",
    "clusters",
    "imagenet58",
    "read_categories",
]
