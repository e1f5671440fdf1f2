"""A converted network fitted to data in closed form."""

from .batches import batches_for, device_of
from .calibrate import calibrate
from .moments import Moments
from .reconstruct import reconstruct
from .reestimate_norms import by_batch, reestimate_norms, statistics_of

__all__ = [
    "Moments",
    "batches_for",
    "by_batch",
    "calibrate",
    "device_of",
    "reconstruct",
    "reestimate_norms",
    "statistics_of",
]
