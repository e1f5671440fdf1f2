"""The FLOPs table of a converted model."""

from .table import FlopsTable, flops_table

__all__ = [
    "FlopsTable",
    "flops_table",
]
