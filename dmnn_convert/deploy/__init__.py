"""Networks for other engines."""

from .branching import branching
from .gated import GatedTimes, export_gated, write_gated, write_package

__all__ = [
    "GatedTimes",
    "branching",
    "export_gated",
    "write_gated",
    "write_package",
]
