"""Blocks of a model, each with a split or a reason."""

from .block import Block
from .branch import Branch, with_shared_norm
from .convertible import check_convertible
from .find_blocks import blocks_of, find_blocks, no_blocks_error
from .reparametrized import check_attached
from .selectors import SelectedBlock, Where, select

__all__ = [
    "Block",
    "Branch",
    "SelectedBlock",
    "Where",
    "blocks_of",
    "check_attached",
    "check_convertible",
    "find_blocks",
    "no_blocks_error",
    "select",
    "with_shared_norm",
]
