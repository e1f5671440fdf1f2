"""Budgets: levels, cascades and the training for them; one checkpoint for any FLOPs budget."""

from .cascade import Cascade
from .choice import ChosenPolicy, choose, measured
from .confidence import Confidence, confidence_in
from .exits import Exits, record_exits
from .fit import AllAnswers, Fitted
from .freeze import freeze
from .level import Level, check_levels, level_path, smallest_for
from .offset import set_budget
from .policies import Point, Refusal, points
from .sandwich import LevelLosses, divergence, level_losses, step_paths
from .search import search_ladder, search_levels
from .statistics import (
    at_level,
    estimate_levels,
    level_statistics,
)
from .thresholds import best_thresholds, figures_at

__all__ = [
    "AllAnswers",
    "Cascade",
    "ChosenPolicy",
    "Confidence",
    "Exits",
    "Fitted",
    "Level",
    "LevelLosses",
    "Point",
    "Refusal",
    "at_level",
    "best_thresholds",
    "check_levels",
    "choose",
    "confidence_in",
    "divergence",
    "estimate_levels",
    "figures_at",
    "freeze",
    "level_losses",
    "level_path",
    "level_statistics",
    "measured",
    "points",
    "record_exits",
    "search_ladder",
    "search_levels",
    "set_budget",
    "smallest_for",
    "step_paths",
]
