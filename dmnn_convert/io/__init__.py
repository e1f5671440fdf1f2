"""Models by name, released networks, source weights, saved conversions, levels and cascades."""

from . import zoo
from .cascade import CASCADE, Cascade, read_described
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
    "read_described",
    "read_saved",
    "save",
    "save_level",
    "zoo",
]
