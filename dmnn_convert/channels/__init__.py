"""The paths of hidden channels through the operations of a graph."""

from .hidden import Hidden, follow, late_nodes
from .layout import Layout, channel_count, is_pooled, parameter_behind
from .node_rules import ATTENTION, rule
from .nodes import (
    CONCATENATIONS,
    MULTIPLICATIONS,
    VIEWS,
    adds_dims,
    batch_norm_arguments,
    carries,
    class_name,
    computed_inputs,
    conv_of,
    group_norm_arguments,
    is_addition,
    is_plain_conv,
    is_row_wise_conv,
    is_subtraction,
    layer_of,
    mark_context,
    mark_vector,
    op_name,
    tensor_inputs,
    values_read,
)
from .not_splittable import HEADS, Mismatch, NotSplittable
from .partition import Run, nested_runs, partition, units_of
from .place import channel_place
from .rank import rank_of

__all__ = [
    "ATTENTION",
    "CONCATENATIONS",
    "HEADS",
    "MULTIPLICATIONS",
    "VIEWS",
    "Hidden",
    "Layout",
    "Mismatch",
    "NotSplittable",
    "Run",
    "adds_dims",
    "batch_norm_arguments",
    "carries",
    "channel_count",
    "channel_place",
    "class_name",
    "computed_inputs",
    "conv_of",
    "follow",
    "group_norm_arguments",
    "is_addition",
    "is_plain_conv",
    "is_pooled",
    "is_row_wise_conv",
    "is_subtraction",
    "late_nodes",
    "layer_of",
    "mark_context",
    "mark_vector",
    "nested_runs",
    "op_name",
    "parameter_behind",
    "partition",
    "rank_of",
    "rule",
    "tensor_inputs",
    "units_of",
    "values_read",
]
