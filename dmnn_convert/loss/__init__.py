"""The losses of training, and the schedule of their target."""

from .category import category_loss, category_terms, stage_weights
from .resource import global_rates, resource_loss
from .schedule import GatePhase, GateSchedule
from .total import DMNNLoss, LossParts

__all__ = [
    "DMNNLoss",
    "GatePhase",
    "GateSchedule",
    "LossParts",
    "category_loss",
    "category_terms",
    "global_rates",
    "resource_loss",
    "stage_weights",
]
