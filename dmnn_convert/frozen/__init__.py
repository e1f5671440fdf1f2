"""Frozen networks: one path of a converted model, as a plain network."""

from .plain import plain_block, plain_network

__all__ = [
    "plain_block",
    "plain_network",
]
