"""The paths of hidden channels through the operations of a graph."""

from .hidden import Hidden, follow, late_nodes
from .layout import REDUCTIONS, is_pooled, parameter_behind
from .nodes import (
    MULTIPLICATIONS,
    batch_norm_arguments,
    class_name,
    conv_of,
    is_addition,
    is_plain_conv,
    is_row_wise_conv,
    is_subtraction,
    layer_of,
    mark_context,
    op_name,
    tensor_inputs,
    values_read,
)
from .not_splittable import HEADS, Mismatch, NotSplittable
from .operations import ATTENTION, Role, Rule, rule
from .partition import partition, units_of
from .place import channel_place

__all__ = [
    "ATTENTION",
    "HEADS",
    "MULTIPLICATIONS",
    "REDUCTIONS",
    "Hidden",
    "Mismatch",
    "NotSplittable",
    "Role",
    "Rule",
    "batch_norm_arguments",
    "channel_place",
    "class_name",
    "conv_of",
    "follow",
    "is_addition",
    "is_plain_conv",
    "is_pooled",
    "is_row_wise_conv",
    "is_subtraction",
    "late_nodes",
    "layer_of",
    "mark_context",
    "op_name",
    "parameter_behind",
    "partition",
    "rule",
    "tensor_inputs",
    "units_of",
    "values_read",
]
