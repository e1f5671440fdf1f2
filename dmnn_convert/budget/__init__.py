"""Budgets: levels, thresholds and cascades; one checkpoint for any number of FLOPs."""

from .cascade import Cascade
from .exits import Exits, record_exits
from .fit import Fitted

__all__ = ["Cascade", "Exits", "Fitted", "record_exits"]
