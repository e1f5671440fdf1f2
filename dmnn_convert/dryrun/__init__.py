"""What a pass over an empty copy of a model tells: costs, sizes, calls."""

from .calls import Run, observed
from .classifier import classes_told_by, classifier_of
from .count import Cost, Shape, example_images, measure
from .input_size import check_input_size, described, own_size

__all__ = [
    "Cost",
    "Run",
    "Shape",
    "check_input_size",
    "classes_told_by",
    "classifier_of",
    "described",
    "example_images",
    "measure",
    "observed",
    "own_size",
]
