"""Budgets: levels, and training one network for all of them."""

from .level import check_levels, level_path, smallest_for
from .sandwich import LevelLosses, divergence, level_losses, step_paths
from .search import search_levels
from .statistics import (
    LevelStatistics,
    at_level,
    estimate_levels,
    level_statistics,
    make_room_for_levels,
)

__all__ = [
    "LevelLosses",
    "LevelStatistics",
    "at_level",
    "check_levels",
    "divergence",
    "estimate_levels",
    "level_losses",
    "level_path",
    "level_statistics",
    "make_room_for_levels",
    "search_levels",
    "smallest_for",
    "step_paths",
]
