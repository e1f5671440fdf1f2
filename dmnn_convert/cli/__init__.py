"""The command ``dmnn-convert``."""

from .convert import main

__all__ = [
    "main",
]
