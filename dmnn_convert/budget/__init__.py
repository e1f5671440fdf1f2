"""Budgets: levels, cascades and the training for them; one checkpoint for any FLOPs budget."""

from .cascade import Cascade
from .exits import Exits, record_exits
from .fit import Fitted
from .freeze import freeze
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
    "Cascade",
    "Exits",
    "Fitted",
    "LevelLosses",
    "LevelStatistics",
    "at_level",
    "check_levels",
    "divergence",
    "estimate_levels",
    "freeze",
    "level_losses",
    "level_path",
    "level_statistics",
    "make_room_for_levels",
    "record_exits",
    "search_levels",
    "smallest_for",
    "step_paths",
]
