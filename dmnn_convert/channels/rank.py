"""The number of dimensions of a value, inferred from a graph without shapes."""

from __future__ import annotations

from torch import fx
from torch.nn.modules.conv import _ConvNd

from ..graph import (
    KEEPING_RANK,
    TracedModel,
    argument,
    is_shape,
    keeps_dim,
    new_shape,
    permutation,
)
from .nodes import VIEWS, carries, class_name, computed_inputs, is_reduction, op_name


def rank_of(traced: TracedModel, node: fx.Node) -> int | None:
    """Return the number of a value's dimensions, if the operations before it show it."""
    for _ in range(100):
        module, name = traced.module(node), op_name(node)
        if isinstance(module, _ConvNd):
            return len(module.kernel_size) + 2
        digits = [int(c) for c in class_name(module) if c.isdigit()]
        if class_name(module).startswith("BatchNorm") and digits[:1] in ([2], [3]):
            return digits[0] + 2
        if name == "permute":
            return len(permutation(node) or ()) or None
        if name in VIEWS and not any(is_shape(part) for part in new_shape(node)):
            return len(new_shape(node))
        if name == "flatten" and argument(node, 1, "start_dim") == 2:
            return 3 if argument(node, 2, "end_dim") in (None, -1) else None
        inputs = computed_inputs(node)
        keeps = is_reduction(node) and keeps_dim(node)
        keeps = keeps or traced.module(node) is not None or carries(traced, node) in KEEPING_RANK
        if not inputs or not keeps:
            return None
        node = inputs[0]
    return None
