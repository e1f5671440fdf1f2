"""The names that deployment exports, whose import loads PyTorch."""

from .build import deploy
from .gated import GatedTimes, export_gated, write_gated, write_package
from .loaded import load_deployed

__all__ = [
    "GatedTimes",
    "deploy",
    "export_gated",
    "load_deployed",
    "write_gated",
    "write_package",
]
