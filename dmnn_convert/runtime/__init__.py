"""Inference that is really faster: prepared forms of converted models, and their benchmark."""

from .prepare import PreparedModel, prepare

__all__ = ["PreparedModel", "prepare"]
