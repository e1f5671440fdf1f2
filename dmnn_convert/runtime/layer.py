"""Convolutions with everything linear folded in: chains of them, and several chains as one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import ConversionError
from ..graph import TracedModel, skeleton, trace_in_mode, with_plain_numbers
from ..nn import AnyBatchNorm, scale_and_shift
from ..optional import loaded
from .activation import Activation, activation_at, activation_of


@dataclass(frozen=True, eq=False, repr=False)
class Layer:
    """A convolution (weight (O, I / groups, kh, kw), bias (O,)) and the activation after it.

    `reads` gives the channels of its input that it reads: (first, count); None for all.
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    activation: Activation | None = None
    reads: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return f"Layer({tuple(self.weight.shape)}, {self.geometry}, {self.groups}, {self.reads})"

    @property
    def geometry(self) -> tuple[Any, ...]:
        """Everything that layers must share in order to become one."""
        kind = None if self.activation is None else self.activation.kind
        kernel = tuple(self.weight.shape[2:])
        return (kernel, self.stride, self.padding, self.dilation, kind, self.weight.dtype)

    def scaled(self, scale: Tensor, shift: Tensor) -> Layer:
        """Return the layer with ``scale · y + shift`` (O,) folded in."""
        weight = self.weight * scale.view(-1, 1, 1, 1)
        return replace(self, weight=weight, bias=self.bias * scale + shift)

    @property
    def macs_per_place(self) -> int:
        """MACs of one output position."""
        return self.weight.numel()


_WITH_ACTIVATION = "timm.layers.BatchNormAct2d"


def has_activation(norm: object) -> bool:
    """Return whether a module is timm's batch norm, with an activation after it."""
    return isinstance(norm, loaded(_WITH_ACTIVATION))


def norms() -> tuple[type, ...]:
    """Return the classes of norms that can be folded in."""
    foreign = loaded("torchvision.ops.FrozenBatchNorm2d", _WITH_ACTIVATION)
    return (nn.BatchNorm2d, AnyBatchNorm, *foreign)


_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)


_NOTHING_BY_NAME = ("DropPath", "DropBlock2d")


def is_plain_conv2d(module: nn.Module | None) -> bool:
    """Return whether a module is a convolution that the fast forms can run."""
    return (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def does_nothing(module: nn.Module | None) -> bool:
    """Return whether a module returns its input unchanged in evaluation."""
    if isinstance(module, nn.Sequential) and not len(module):
        return True
    nothing = (*_NOTHING, *loaded("torchvision.ops.StochasticDepth"))
    return isinstance(module, nothing) or type(module).__name__ in _NOTHING_BY_NAME


def layer_of(conv: Any) -> Layer:
    """Return a convolution as a layer."""
    weight = conv.weight.detach()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach()
    return Layer(weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def affine(norm: Any) -> tuple[Tensor, Tensor] | None:
    """Return (scale, shift), (C,) each, of a batch norm in evaluation; None if it has none."""
    if type(norm) not in norms() or norm.running_var is None:
        return None
    scale, shift = scale_and_shift(norm)
    dtype = norm.running_mean.dtype if norm.weight is None else norm.weight.dtype
    return scale.to(dtype), shift.to(dtype)


def with_norm(layer: Layer, norm: Any) -> Layer | None:
    """Return a layer with the batch norm after it folded in, and the activation that it holds."""
    found = affine(norm)
    if found is None or layer.activation is not None:
        return None
    layer = layer.scaled(*found)
    if has_activation(norm):
        if not does_nothing(norm.drop):
            return None
        if not does_nothing(norm.act):
            activation = activation_of(norm.act)
            return None if activation is None else replace(layer, activation=activation)
    return layer


def traced(module: nn.Module) -> TracedModel | None:
    """Return a module in evaluation as a graph; None if torch.fx cannot follow it."""
    try:
        found = trace_in_mode(skeleton(module), None, None, training=False)
    except ConversionError:
        return None
    with_plain_numbers(found.graph)
    return found


def chain_of(module: nn.Module) -> list[Layer] | None:
    """Return a module as a chain of layers; None if it computes anything else."""
    graph = traced(module)
    nodes = None if graph is None else _in_a_row(graph.graph)
    if graph is None or nodes is None:
        return None
    layers: list[Layer] = []
    reads: tuple[int, int] | None = None
    for node in nodes:
        called = graph.module(node)
        if is_plain_conv2d(called):
            layers.append(replace(layer_of(called), reads=None if layers else reads))
        elif not layers and reads is None and _narrows(node):
            reads = node.args[2], node.args[3]  # type: ignore[assignment]
        elif does_nothing(called):
            continue
        elif not layers:
            return None
        else:
            longer = _extended(layers[-1], node, called)
            if longer is None:
                return None
            layers[-1] = longer
    return layers


def _narrows(node: fx.Node) -> bool:
    return bool(node.op == "call_method" and node.target == "narrow" and node.args[1] == 1)


def _extended(layer: Layer, node: fx.Node, called: nn.Module | None) -> Layer | None:
    if isinstance(called, norms()):
        return with_norm(layer, called)
    activation = activation_at(node, called)
    if activation is None or layer.activation is not None:
        return None
    return replace(layer, activation=activation)


def _in_a_row(graph: fx.Graph) -> list[fx.Node] | None:
    """Return the nodes between input and output if each reads only the one before."""
    images, *others = (node for node in graph.nodes if node.op == "placeholder")
    if any(node.users for node in others):
        return None
    row: list[fx.Node] = []
    before = images
    for node in graph.nodes:
        if node.op == "placeholder":
            continue
        if node.all_input_nodes != [before]:
            return None
        if node.op == "output":
            return row if node.args[0] is before else None
        row.append(node)
        before = node
    return None


def merged(chains: Sequence[Sequence[Layer]]) -> list[Layer] | None:
    """Return chains that read the same input and are summed as one; None if that is impossible.

    The first layers' outputs stand side by side, the layers between keep them apart, and the last
    layer sums.
    """
    if len(chains) == 1:
        return list(chains[0])
    depth = len(chains[0])
    if depth < 2 or any(len(chain) != depth for chain in chains):
        return None
    steps = list(zip(*chains, strict=True))
    if any(len({layer.geometry for layer in step}) > 1 for step in steps):
        return None
    if any(layer.groups > 1 for layer in steps[-1]) or steps[-1][0].activation is not None:
        return None
    layers = [_first(steps[0]), *map(_side_by_side, steps[1:-1]), _summed(steps[-1])]
    known = [layer for layer in layers if layer is not None]
    return known if len(known) == depth else None


def _first(layers: Sequence[Layer]) -> Layer | None:
    """Return first layers as one, which reads the whole input, or neighbouring runs of it."""
    if all(layer.reads is None for layer in layers):
        return None if any(layer.groups > 1 for layer in layers) else _stacked(layers, 1)
    runs = [layer.reads or (0, 0) for layer in layers]
    for (first, count), (following, _) in itertools.pairwise(runs):
        if first + count != following:
            return None
    joined = _side_by_side(layers)
    reads = (runs[0][0], sum(count for _, count in runs))
    return None if joined is None else replace(joined, reads=reads)


def _stacked(layers: Sequence[Layer], groups: int) -> Layer:
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    return replace(layers[0], weight=weight, bias=bias, groups=groups)


def _side_by_side(layers: Sequence[Layer]) -> Layer | None:
    shapes = {(len(x.weight) // x.groups, x.weight.shape[1]) for x in layers}
    return _stacked(layers, sum(x.groups for x in layers)) if len(shapes) == 1 else None


def _summed(layers: Sequence[Layer]) -> Layer:
    weight = torch.cat([layer.weight for layer in layers], 1)
    bias = torch.stack([layer.bias for layer in layers]).sum(0)
    return replace(layers[0], weight=weight, bias=bias)


def ungrouped(layer: Layer) -> Layer:
    """Return the same without groups: zeros stand where outputs do not read inputs."""
    if layer.groups == 1:
        return layer
    outputs, inputs = len(layer.weight) // layer.groups, layer.weight.shape[1]
    weight = layer.weight.new_zeros(
        len(layer.weight), inputs * layer.groups, *layer.weight.shape[2:]
    )
    for i, own in enumerate(layer.weight.split(outputs)):
        weight[i * outputs : (i + 1) * outputs, i * inputs : (i + 1) * inputs] = own
    return replace(layer, weight=weight, groups=1)
