"""The conversion of a model's blocks into multi-path blocks."""

from .comparing import deviation_of, undisturbed
from .coverage import in_part, left_dense
from .dynamize import Dynamized, convert, dynamize

__all__ = [
    "Dynamized",
    "convert",
    "deviation_of",
    "dynamize",
    "in_part",
    "left_dense",
    "undisturbed",
]
