"""Models by name, source weights, and saved conversions."""

from . import zoo
from .cascade import CASCADE, Cascade
from .checkpoint import CONFIG, TABLE, WEIGHTS, Saved, load, read_saved, save
from .frozen import LEVEL, load_level, save_level
from .source_weights import load_source_checkpoint

__all__ = [
    "CASCADE",
    "CONFIG",
    "LEVEL",
    "TABLE",
    "WEIGHTS",
    "Cascade",
    "Saved",
    "load",
    "load_level",
    "load_source_checkpoint",
    "read_saved",
    "save",
    "save_level",
    "zoo",
]
