"""Dry runs: costs, input sizes and calls, learned from a pass over an empty copy of a model."""

from .calls import Run, call_record
from .classifier import classes_told_by, classifier_of
from .count import Cost, Shape, example_images, measure
from .input_size import check_input_size, described, own_size

__all__ = [
    "Cost",
    "Run",
    "Shape",
    "call_record",
    "check_input_size",
    "classes_told_by",
    "classifier_of",
    "described",
    "example_images",
    "measure",
    "own_size",
]
