"""The stages of a network, told apart by how far the image has shrunk at each node."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from ..channels import tensor_inputs
from ..graph import TracedModel, argument

_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


_CONVS = (F.conv1d, F.conv2d, F.conv3d)


def shrinkage(traced: TracedModel) -> dict[fx.Node, float]:
    """Return the factor by which the strides before each node have shrunk the image.

    Shapes would need an input size, which finding blocks does without. An operation of unknown
    stride counts as stride 1. Where paths meet, the larger factor counts.
    """
    shrunk: dict[fx.Node, float] = {}
    for node in traced.graph.nodes:
        before = max((shrunk[n] for n in tensor_inputs(node)), default=1.0)
        shrunk[node] = before * _shrinks(traced, node)
    return shrunk


def _shrinks(traced: TracedModel, node: fx.Node) -> float:
    module = traced.module(node)
    if isinstance(module, _ConvTransposeNd):
        return 1 / _largest(module.stride)
    if isinstance(module, nn.Upsample):
        return 1 / _largest(module.scale_factor)
    if module is not None:
        return _largest(getattr(module, "stride", None))
    if node.target in _POOLS:
        kernel = argument(node, 1, "kernel_size")
        return _largest(argument(node, 2, "stride") or kernel)
    if node.target in _CONVS:
        return _largest(argument(node, 3, "stride"))
    if node.target is F.interpolate:
        return 1 / _largest(argument(node, 2, "scale_factor"))
    return 1.0


def _largest(sizes: Any) -> float:
    several = sizes if isinstance(sizes, tuple | list) else [sizes]
    numbers = [s for s in several if isinstance(s, int | float) and s > 0]
    return float(max(numbers, default=1))
