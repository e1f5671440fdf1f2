"""Sub-blocks computed together: fewer and wider operations, the same numbers.

Sub-blocks that are straight runs of layers read the same value first: their first convolutions run
as one, with the weights side by side, and so do the norms and activations that follow. If the runs
end in convolutions that widen, the gates multiply their inputs, and these convolutions also run as
one.

Modules, parameters and statistics stay where they are. A layer that is not exactly one of torch's
own, or that has a hook, is called unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .plain import has_global_hook, is_plain, is_watched

Step = str | Callable[[Tensor], Tensor]


Layer = Sequence[Any]
"""The layers that the sub-blocks call at the same step, one for each."""


FUNCTIONS = (F.relu, torch.relu, F.relu6, F.silu, F.hardswish)


ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)


GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


STATISTICS = ("running_mean", "running_var")


TRACKS = "track_running_stats"


WIDEST = 2
"""Largest ratio of output to input channels at which first convolutions are merged.

Above it, splitting the result costs more than reading the input several times.
"""


def note_steps(module: nn.Module, graph: fx.Graph) -> None:
    """Note on a module which layers its generated forward runs one after another."""
    vars(module)["dmnn_steps"] = steps_of(graph)


def _steps(module: nn.Module) -> tuple[Step, ...]:
    steps: tuple[Step, ...] = getattr(module, "dmnn_steps", ())
    return steps


def steps_of(graph: fx.Graph) -> tuple[Step, ...]:
    """Return the layers that a graph runs in sequence; none if it does anything else."""
    *nodes, output = graph.nodes
    steps: list[Step] = []
    for before, node in pairwise(nodes):
        if node.args != (before,) or node.kwargs.keys() - {"inplace"}:
            return ()
        if node.op == "call_module":
            steps.append(str(node.target))
        elif node.op == "call_function" and node.target in FUNCTIONS:
            steps.append(node.target)
        else:
            return ()
    return tuple(steps) if output.args == (nodes[-1],) else ()


def gated_sum(sub_blocks: Sequence[nn.Module], x: Tensor, gates: Tensor | None) -> Tensor | None:
    """Return Σ gate · sub-block of x (B, C, H, W) for gates (B, N); None if nothing can be merged.

    Args:
        sub_blocks: modules; merged if `note_steps` has seen the forwards of all of them.
        x: their common input.
        gates: one for each image and sub-block; None if all are on.
    """
    if len(sub_blocks) < 2:
        return None
    steps = _steps(sub_blocks[0])
    alike = all(_steps(s) == steps and not is_watched(s) for s in sub_blocks)
    if len(steps) < 2 or not alike or has_global_hook():
        return None
    layers = [_layer(sub_blocks, step) for step in steps]
    ends = _convolves(layers[-1]) if gates is None else _can_end(layers[-1])
    inner = layers[:-1] if ends else layers
    start = _common_start(inner)
    if start == 0:
        return None
    for layer in inner[:start]:
        x = _together(layer, x)
    values = x.split([m.out_channels for m in layers[0]], 1)
    for layer in inner[start:]:
        values = tuple(call(value) for call, value in zip(layer, values, strict=True))
    if not ends:
        return weighted_sum(values, gates)
    return _ended(layers[-1], torch.cat(values, 1) if start < len(inner) else x, gates)


def weighted_sum(values: Sequence[Tensor], gates: Tensor | None) -> Tensor:
    """Return Σ gate · value for values (B, ...) and gates (B, N); Σ value without gates."""
    if gates is None:
        return reduce(add, values)
    return reduce(add, (times(value, gates[:, n]) for n, value in enumerate(values)))


def times(y: Tensor, gate: Tensor) -> Tensor:
    """Multiply y (B, ...) by a gate (B,)."""
    return y * gate.to(y.dtype).view(-1, *(1,) * (y.dim() - 1))


# --- what can be merged -------------------------------------------------------------------------


def _layer(sub_blocks: Sequence[nn.Module], step: Step) -> Layer:
    if isinstance(step, str):
        return [sub_block.get_submodule(step) for sub_block in sub_blocks]
    return [step] * len(sub_blocks)


def _plain(layer: Layer, kind: type[nn.Module], *equal: str) -> bool:
    """Return whether all are exactly of a class, without hooks, and share some attributes."""
    first = layer[0]
    return all(
        is_plain(m, kind) and all(getattr(m, name) == getattr(first, name) for name in equal)
        for m in layer
    )


def _have(layer: Layer, name: str) -> bool | None:
    """Return whether all have a tensor (True) or none (False); None for some."""
    count = sum(getattr(m, name) is not None for m in layer)
    return count == len(layer) if count in (0, len(layer)) else None


def _convolves(layer: Layer) -> bool:
    return (
        _plain(layer, nn.Conv2d, *GEOMETRY)
        and layer[0].padding_mode == "zeros"
        and all(m.groups == 1 for m in layer)
        and _have(layer, "bias") is not None
    )


def _normalises(layer: Layer) -> bool:
    return (
        _plain(layer, nn.BatchNorm2d, "momentum", "eps", "affine", "training", TRACKS)
        and layer[0].momentum is not None
        and all(_have(layer, name) for name in (*STATISTICS, "num_batches_tracked"))
        and _have(layer, "weight") is not None
        and _have(layer, "bias") is not None
    )


def _common_start(layers: Sequence[Layer]) -> int:
    """Return how many layers from the first on can be merged."""
    first = layers[0]
    if not _convolves(first) or sum(m.out_channels for m in first) > WIDEST * first[0].in_channels:
        return 0
    for length, layer in enumerate(layers[1:], 1):
        if isinstance(layer[0], nn.Module):
            acts = any(_plain(layer, kind) for kind in ACTIVATIONS)
        else:
            acts = layer[0] in FUNCTIONS
        if not acts and not _normalises(layer):
            # Others might write into their input, which views of a whole do not allow.
            return length if isinstance(layer[0], nn.Conv2d) else 0
    return len(layers)


def _can_end(layer: Layer) -> bool:
    """Return whether a layer is a convolution to more channels than it reads."""
    wider = sum(m.out_channels - m.in_channels for m in layer) if _convolves(layer) else -1
    return wider >= 0


# --- what runs ----------------------------------------------------------------------------------


def _together(layer: Layer, x: Tensor) -> Tensor:
    first = layer[0]
    if isinstance(first, nn.Conv2d):
        return _convolution(first, x, _joined(layer, "weight"), _joined(layer, "bias"))
    if isinstance(first, nn.BatchNorm2d):
        return _norm(layer, x)
    return first(x)  # type: ignore[no-any-return]


def _joined(layer: Layer, name: str) -> Tensor | None:
    tensors = [getattr(m, name) for m in layer]
    return None if tensors[0] is None else torch.cat(tensors)


def _convolution(like: nn.Conv2d, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, like.stride, like.padding, like.dilation)  # type: ignore[arg-type]


def _norm(layer: Layer, x: Tensor) -> Tensor:
    """Normalise, and update each norm's own statistics as it would."""
    first = layer[0]
    weight, bias = (_joined(layer, name) for name in ("weight", "bias"))
    reads = not first.training or first.track_running_stats
    mean, var = (_joined(layer, name) if reads else None for name in STATISTICS)
    y = F.batch_norm(x, mean, var, weight, bias, first.training, first.momentum, first.eps)
    if not (first.training and first.track_running_stats):
        return y
    for m in layer:
        m.num_batches_tracked.add_(1)
    for name, tensor in zip(STATISTICS, (mean, var), strict=True):
        parts = tensor.split([m.num_features for m in layer])  # type: ignore[union-attr]
        for m, part in zip(layer, parts, strict=True):
            getattr(m, name).copy_(part)
    return y


def _ended(layer: Layer, inner: Tensor, gates: Tensor | None) -> Tensor:
    """Run the last convolutions as one, on their gated inputs."""
    if gates is None:
        weight = torch.cat([m.weight for m in layer], 1)
        bias = None if layer[0].bias is None else reduce(add, [m.bias for m in layer])
        return _convolution(layer[0], inner, weight, bias)
    columns = zip(gates.to(inner.dtype).split(1, 1), layer, strict=True)
    each = torch.cat([gate.expand(-1, m.in_channels) for gate, m in columns], 1)
    weight = torch.cat([m.weight for m in layer], 1)
    total = _convolution(layer[0], inner * each[:, :, None, None], weight, None)
    if layer[0].bias is None:
        return total
    biases = torch.stack([m.bias for m in layer])
    return total + (gates.to(biases.dtype) @ biases).to(total.dtype)[:, :, None, None]
