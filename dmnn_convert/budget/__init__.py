"""Budgets: levels, and training one network for all of them."""

from .level import check_levels, level_path, smallest_for
from .sandwich import LevelLosses, divergence, level_losses, step_paths

__all__ = [
    "LevelLosses",
    "check_levels",
    "divergence",
    "level_losses",
    "level_path",
    "smallest_for",
    "step_paths",
]
