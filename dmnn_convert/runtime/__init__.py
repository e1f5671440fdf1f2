"""Inference that is really faster: prepared forms of converted models, and their benchmark."""

from .benchmark import Benchmark, Timing
from .clock import image_time
from .prepare import prepare
from .prepared_model import PreparedModel
from .tuning import name_of, tf32

__all__ = [
    "Benchmark",
    "PreparedModel",
    "Timing",
    "image_time",
    "name_of",
    "prepare",
    "tf32",
]
