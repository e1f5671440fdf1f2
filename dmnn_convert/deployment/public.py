"""All names that others take from deployment, and PyTorch with them."""

from .build import deploy
from .loaded import load_deployed

__all__ = [
    "deploy",
    "load_deployed",
]
