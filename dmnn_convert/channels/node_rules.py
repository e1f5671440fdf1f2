"""The rule of the operation that a node stands for.

`graph/operations.py` has the rule by name. This module adds the node's arguments and its module's
settings: an operation that is known only with certain settings is unknown with others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.padding import _ConstantPadNd

from ..graph import (
    BY_BATCH,
    DENSE,
    GROUPED,
    PER_IMAGE,
    UNKNOWN,
    Images,
    Role,
    Rule,
    TracedModel,
    argument,
    is_apart,
    keeps_images_apart,
    known,
    new_shape,
    reduced_dims,
)
from .nodes import (
    DIVISIONS,
    MULTIPLICATIONS,
    batch_norm_arguments,
    class_name,
    is_plain_conv,
    is_row_wise_conv,
    op_name,
    tensor_inputs,
)
from .rank import rank_of

ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward")


def rule(trace: TracedModel, node: fx.Node) -> Rule:
    """Return the rule of the operation that `node` stands for."""
    if node.op == "call_module" and node.target in trace.passing:
        return PER_IMAGE
    if trace.module(node) is not None:
        return _module_rule(trace.module(node))
    if node.op in ("call_function", "call_method"):
        return _operation_rule(trace, node)
    return UNKNOWN


def _module_rule(module: nn.Module | None) -> Rule:
    if isinstance(module, _ConvTransposeNd):
        return PER_IMAGE
    if isinstance(module, _ConvNd):
        if not (is_plain_conv(module) or is_row_wise_conv(module)):
            return UNKNOWN
        return DENSE if module.groups == 1 else GROUPED
    found = known(class_name(module))
    settled = _MODULE_CHECKS.get(found.images)
    if settled is not None and not settled(module):
        return UNKNOWN
    if found.role is Role.NORM:
        if getattr(module, "running_mean", None) is None:
            return BY_BATCH
        # A norm with an activation is not linear.
        return replace(found, linear=isinstance(getattr(module, "act", None), nn.Identity | None))
    if isinstance(module, nn.Hardtanh):
        return replace(found, zero=module.min_val <= 0 <= module.max_val)
    if isinstance(module, _ConstantPadNd) and module.value != 0:
        return replace(found, role=Role.OTHER, linear=False, zero=False)
    return found


_MODULE_CHECKS: dict[Images, Callable[[Any], bool]] = {
    Images.NOT_ALONG: lambda module: is_apart(module.dim),
    Images.NOT_JOINED: lambda module: module.start_dim >= 1,
}
"""When a module leaves the batch alone; a function's arguments tell it in `keeps_images_apart`."""


def _operation_rule(trace: TracedModel, node: fx.Node) -> Rule:
    name = op_name(node)
    found = known(name)
    if name == "repeat" and len(new_shape(node)) != rank_of(trace, tensor_inputs(node)[0]):
        return UNKNOWN  # more numbers than dimensions would make another one the first
    if found.role is Role.NORM:
        plain = node.target is F.batch_norm and batch_norm_arguments(node)
        return found if plain else UNKNOWN
    if not (keeps_images_apart(node, name) or _reduces_others(trace, node, found)):
        return UNKNOWN
    if name == "pad" and (node.kwargs.get("value") or len(node.args) >= 4):
        return replace(found, role=Role.OTHER, linear=False, zero=False)  # not with zeros
    if name in MULTIPLICATIONS or name in DIVISIONS:
        operands = (*node.args, *node.kwargs.values())
        # Not tensor_inputs, which counts y · y once.
        alone = sum(isinstance(a, fx.Node) and a.op != "get_attr" for a in operands) == 1
        alone = alone and not node.kwargs.get("rounding_mode")
        alone = alone and (name in MULTIPLICATIONS or _is_divided(node))
        return replace(found, linear=alone, zero=alone)
    return found


def _reduces_others(trace: TracedModel, node: fx.Node, found: Rule) -> bool:
    """Return whether a reduction counts its dimensions from the back, but never to the first."""
    dims = reduced_dims(node) if found.images is Images.NOT_REDUCED else None
    rank = rank_of(trace, tensor_inputs(node)[0]) if dims else None
    return dims is not None and rank is not None and all(d % rank for d in dims)


def _is_divided(node: fx.Node) -> bool:
    # 1 / x is not linear in x.
    first = argument(node, 0, "input", "self")
    return isinstance(first, fx.Node) and first.op != "get_attr"
