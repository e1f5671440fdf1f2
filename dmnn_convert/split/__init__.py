"""The split of a block's branch into sub-blocks that inherit its weights."""

from .build import split_block, too_narrow
from .nested import nest
from .widths import bottleneck_shape, matched_widths

__all__ = [
    "bottleneck_shape",
    "matched_widths",
    "nest",
    "split_block",
    "too_narrow",
]
