"""Sub-blocks computed together in training: fewer and wider operations, the same numbers.

Sub-blocks that are straight runs of layers begin by reading the same value, so that their first
convolutions are one with the weights side by side, and what follows channel by channel (norms,
activations, depthwise convolutions) is one, too. Where the runs end in convolutions that widen, the
gates multiply what these read, and they are one with the weights behind each other.

Modules, parameters and statistics stay where they are: only what runs is merged. A layer that is
not exactly one of torch's own, or that hooks look at, is called as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import module as hooks

Step = str | Callable[[Tensor], Tensor]
Layer = Sequence[Any]
"""What the sub-blocks call at the same step, one for each."""

FUNCTIONS = (F.relu, F.relu6, F.silu, F.hardswish, torch.relu)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)
GEOMETRY = ("kernel_size", "stride", "padding", "dilation")


def steps_of(graph: fx.Graph) -> tuple[Step, ...]:
    """Return the layers that a graph runs one after another; none if it does anything else."""
    *nodes, output = graph.nodes
    steps: list[Step] = []
    for before, node in pairwise(nodes):
        if node.args != (before,) or node.kwargs.keys() - {"inplace"}:
            return ()
        if node.op == "call_module":
            steps.append(str(node.target))
        elif node.op == "call_function" and node.target in FUNCTIONS:
            steps.append(node.target)  # type: ignore[arg-type]
        else:
            return ()
    return tuple(steps) if output.args == (nodes[-1],) else ()


def gated_sum(sub_blocks: Sequence[nn.Module], x: Tensor, gates: Tensor) -> Tensor | None:
    """Return Σ gate · sub-block of x (B, C, H, W) for gates (B, N); None if nothing can be merged.

    Args:
        sub_blocks: modules whose attribute `steps` is what `steps_of` gave for their forward.
        x: what all of them read.
        gates: one for each image and sub-block.
    """
    steps = getattr(sub_blocks[0], "steps", ())
    if not steps or len(sub_blocks) == 1 or not all(
        getattr(s, "steps", None) == steps and not _watched(s) for s in sub_blocks
    ):
        return None
    layers = [_layer(sub_blocks, step) for step in steps]
    ends = len(layers) > 1 and _widens(layers[-1])
    inner = layers[:-1] if ends else layers
    start = _common_start(inner)
    if start == 0:
        return None
    values = _run(inner, start, x, ends)
    return _ended(layers[-1], values, gates) if ends else weighted_sum(values, gates)


def weighted_sum(values: Sequence[Tensor], gates: Tensor) -> Tensor:
    """Return Σ gate · value for values (B, ...) and gates (B, N)."""
    shape = (-1, *(1,) * (values[0].dim() - 1))
    weights = [gate.view(shape) for gate in gates.to(values[0].dtype).unbind(1)]
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total = torch.addcmul(total, value, weight)
    return total


# --- what can be merged -------------------------------------------------------------------------


def _layer(sub_blocks: Sequence[nn.Module], step: Step) -> Layer:
    if isinstance(step, str):
        return [sub_block.get_submodule(step) for sub_block in sub_blocks]
    return [step] * len(sub_blocks)


def _watched(module: nn.Module) -> bool:
    """Tell whether a module's call does more than what its class says."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def _all(layer: Layer, kind: type[nn.Module], *equal: str) -> bool:
    """Tell whether all are exactly of a class, with some attributes in common, and plain."""
    first = layer[0]
    return all(
        type(m) is kind
        and not _watched(m)
        and all(type(p) is nn.Parameter for p in m._parameters.values() if p is not None)
        and m._parameters.keys() == first._parameters.keys()
        and all(getattr(m, name) == getattr(first, name) for name in equal)
        for m in layer
    )


def _convolves(layer: Layer) -> bool:
    return _all(layer, nn.Conv2d, *GEOMETRY, "padding_mode") and layer[0].padding_mode == "zeros"


def _common_start(layers: Sequence[Layer]) -> int:
    """Return how many layers from the first on can be merged."""
    first = layers[0]
    if not (_convolves(first) and all(m.groups == 1 for m in first)):
        return 0
    for length, layer in enumerate(layers[1:], 1):
        if not _by_channel(layer):
            # Nothing may write into a part of a value that is whole.
            return length if isinstance(layer[0], nn.Conv2d) else 0
    return len(layers)


def _by_channel(layer: Layer) -> bool:
    """Tell whether a layer treats each channel by itself and alike in all sub-blocks."""
    if layer[0] in FUNCTIONS:
        return True
    if _convolves(layer):
        return all(m.groups == m.in_channels == m.out_channels for m in layer)
    if _all(layer, nn.BatchNorm2d, "momentum", "eps", "training", "track_running_stats", "affine"):
        norm = layer[0]
        return norm.training and norm.track_running_stats and norm.momentum is not None
    return any(_all(layer, kind) for kind in ACTIVATIONS)


def _widens(layer: Layer) -> bool:
    """Tell whether a layer is a convolution to more channels than it reads."""
    if not (_convolves(layer) and all(m.groups == 1 for m in layer)):
        return False
    return sum(m.in_channels for m in layer) <= sum(m.out_channels for m in layer)


# --- what runs ----------------------------------------------------------------------------------


def _run(layers: Sequence[Layer], start: int, x: Tensor, whole: bool) -> list[Tensor]:
    """Run layers, as many as `start` says on all channels at once, the others one by one."""
    for layer in layers[:start]:
        x = _together(layer, x)
    if start == len(layers) and whole:
        return [x]
    values = list(x.split([m.out_channels for m in layers[0]], 1))
    for layer in layers[start:]:
        values = [call(value) for call, value in zip(layer, values, strict=True)]
    return values


def _together(layer: Layer, x: Tensor) -> Tensor:
    first = layer[0]
    if isinstance(first, nn.Conv2d):
        groups = 1 if first.groups == 1 else sum(m.groups for m in layer)
        return _convolution(layer, x, _joined(layer, "weight"), _joined(layer, "bias"), groups)
    if isinstance(first, nn.BatchNorm2d):
        return _norm(layer, x)
    return first(x)  # type: ignore[no-any-return]


def _joined(layer: Layer, name: str) -> Tensor | None:
    tensors = [getattr(m, name) for m in layer]
    return None if tensors[0] is None else torch.cat(tensors)


def _convolution(
    layer: Layer, x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int
) -> Tensor:
    m = layer[0]
    return F.conv2d(x, weight, bias, m.stride, m.padding, m.dilation, groups)  # type: ignore[arg-type]


def _norm(layer: Layer, x: Tensor) -> Tensor:
    first = layer[0]
    with torch.no_grad():
        for m in layer:
            m.num_batches_tracked.add_(1)
        before = [_joined(layer, name) for name in ("running_mean", "running_var")]
    y = F.batch_norm(
        x,
        *before,
        _joined(layer, "weight"),
        _joined(layer, "bias"),
        True,
        first.momentum,
        first.eps,
    )
    widths = [m.num_features for m in layer]
    with torch.no_grad():
        for name, value in zip(("running_mean", "running_var"), before, strict=True):
            for m, own in zip(layer, value.split(widths), strict=True):
                getattr(m, name).copy_(own)
    return y


def _ended(layer: Layer, values: Sequence[Tensor], gates: Tensor) -> Tensor:
    """Gate what the last convolutions read: all of them are one then."""
    inner = values[0] if len(values) == 1 else torch.cat(list(values), 1)
    columns = zip(gates.to(inner.dtype).split(1, 1), layer, strict=True)
    each = torch.cat([gate.expand(-1, m.in_channels) for gate, m in columns], 1)
    weight = torch.cat([m.weight for m in layer], 1)
    total = _convolution(layer, inner * each[:, :, None, None], weight, None, 1)
    if layer[0].bias is None:
        return total
    bias = gates @ torch.stack([m.bias for m in layer]).to(gates.dtype)
    return total + bias.to(total.dtype)[:, :, None, None]
