"""Models by name, source weights, and saved conversions."""

from . import zoo
from .cascade import CASCADE, Cascade
from .checkpoint import CONFIG, WEIGHTS, Saved, load, read_saved, save
from .source_weights import load_source_checkpoint

__all__ = [
    "CASCADE",
    "CONFIG",
    "WEIGHTS",
    "Cascade",
    "Saved",
    "load",
    "load_source_checkpoint",
    "read_saved",
    "save",
    "zoo",
]
