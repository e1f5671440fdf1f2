"""Inference that is really faster: prepared forms of converted models, and their benchmark."""

from .alone import ENGINES, Engine, is_installed
from .benchmark import Benchmark
from .clock import image_time
from .prepare import prepare
from .prepared_model import PreparedModel
from .timing import Timing
from .tuning import name_of, tf32

__all__ = [
    "ENGINES",
    "Benchmark",
    "Engine",
    "PreparedModel",
    "Timing",
    "image_time",
    "is_installed",
    "name_of",
    "prepare",
    "tf32",
]
