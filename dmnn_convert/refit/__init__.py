"""A converted network fitted to data in closed form."""

from .batches import device_of, image_batches
from .calibrate import calibrate
from .moments import Moments
from .reconstruct import reconstruct
from .reestimate_norms import by_batch, reestimate_norms, statistics_of

__all__ = [
    "Moments",
    "by_batch",
    "calibrate",
    "device_of",
    "image_batches",
    "reconstruct",
    "reestimate_norms",
    "statistics_of",
]
