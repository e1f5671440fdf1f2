"""The conversion of a model's blocks into multi-path blocks."""

from .dynamize import Dynamized, convert, dynamize
from .self_check import deviation_of, undisturbed

__all__ = [
    "Dynamized",
    "convert",
    "deviation_of",
    "dynamize",
    "undisturbed",
]
