"""Models by name, source weights, and saved conversions."""

from . import zoo
from .checkpoint import CONFIG, WEIGHTS, Saved, load, read_saved, save
from .source_weights import load_source_checkpoint

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "Saved",
    "load",
    "load_source_checkpoint",
    "read_saved",
    "save",
    "zoo",
]
