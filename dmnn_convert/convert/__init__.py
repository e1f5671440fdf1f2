"""The conversion of a model's blocks into multi-path blocks."""

from .coverage import in_part, left_dense
from .dynamize import Dynamized, convert, dynamize
from .self_check import deviation_of, undisturbed

__all__ = [
    "Dynamized",
    "convert",
    "deviation_of",
    "dynamize",
    "in_part",
    "left_dense",
    "undisturbed",
]
