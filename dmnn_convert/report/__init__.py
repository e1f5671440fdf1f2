"""Tables for people and programs."""

from .conversion import ConversionReport

__all__ = ["ConversionReport"]
