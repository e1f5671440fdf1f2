"""Means and variances of hidden channels, estimated from weights and norms without data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from ..channels import (
    VIEWS,
    Hidden,
    NotSplittable,
    class_name,
    conv_of,
    op_name,
    rule,
    values_read,
)
from ..find import Branch
from ..graph import Role, TracedModel
from .program import as_module


def add_missing_mean(
    traced: TracedModel, hidden: Hidden, reducer: fx.Node, layer: nn.Module, kept: Tensor
) -> None:
    """Add to a squeeze's bias, in place, the mean contribution of the channels that it lost."""
    weight, bias = getattr(traced.module(reducer), "weight", None), getattr(layer, "bias", None)
    source = values_read(reducer)[0]
    mean = _pooled_mean(traced, source, hidden.layouts[source].count)
    if weight is None or bias is None or mean is None:
        return
    mean[kept] = 0
    with torch.no_grad():
        bias.add_((weight.detach().flatten(1).float().cpu() @ mean).to(bias))


def _pooled_mean(traced: TracedModel, node: fx.Node, channels: int) -> Tensor | None:
    """Return the mean of each channel of a pooled, activated norm's output, or None."""
    between: list[fx.Node] = []
    while rule(traced, node).role is not Role.NORM:
        inputs = values_read(node)
        if len(inputs) != 1 or node.op == "placeholder":
            return None
        between.append(node)
        node = inputs[0]
    norm = as_module(traced, node)
    values = _normal(channels)
    values = values if norm is None else affine(norm, values)
    for later in reversed(between):
        if rule(traced, later).pointwise:
            values = pointwise(traced, later, values)
        elif not (_is_mean(traced, later) or op_name(later) in (*VIEWS, "flatten")):
            return None
    return values.mean(0)


def _is_mean(traced: TracedModel, node: fx.Node) -> bool:
    averages = class_name(traced.module(node)).startswith("AdaptiveAvgPool")
    return averages or op_name(node) == "mean"


def _normal(channels: int) -> Tensor:
    """Return evenly likely values of a standard normal variable, (64, C)."""
    quantiles = (torch.arange(64, dtype=torch.float32) + 0.5) / 64
    values: Tensor = torch.special.ndtri(quantiles)
    return values[:, None].repeat(1, channels)


class BottleneckStatistics:
    """A dense bottleneck's statistics, estimated from its weights and norms without data."""

    def __init__(
        self, traced: TracedModel, branch: Branch, first_layers: Sequence[fx.Node]
    ) -> None:
        self.traced, self.branch = traced, branch
        self.first_layers = first_layers
        second = conv_of(traced, branch.producers[0])
        consumer = conv_of(traced, branch.consumer)
        if second is None or consumer is None:
            raise NotSplittable("the bottleneck's convolutions are not modules")
        self.second, self.consumer = second, consumer
        self.c2 = second.out_channels
        self.mean, self.variance = self._hidden_moments()

    def coupling(self) -> Tensor:
        """Return the part of each input channel in the output's variance through each middle one.

        (C2, C1): squared middle weights, times the input's variance, times the middle norm's gain
        and the squared weights of the last convolution.
        """
        weight = self.second.weight.detach().float().flatten(2).square().sum(2).cpu()
        gain = self._gain_after_second()
        out = self.consumer.weight.detach().float().flatten(2).square().sum((0, 2)).cpu()
        return weight * self.variance * (gain.square() * out)[:, None]

    def missing_mean(self, first: Tensor) -> Tensor:
        """Return the mean that the inputs left out would have added to conv2's outputs, (C2,)."""
        left_out = torch.ones(self.second.in_channels, dtype=torch.bool)
        left_out[first] = False
        sums = self.second.weight.detach().float().flatten(2).sum(2).cpu()
        return sums[:, left_out] @ self.mean[left_out]

    def norm_after_second(self) -> fx.Node | None:
        """Return the norm that reads conv2's output directly, if it keeps a running mean."""
        users = list(self.branch.producers[0].users)
        if len(users) != 1 or rule(self.traced, users[0]).role is not Role.NORM:
            return None
        norm = as_module(self.traced, users[0])
        return users[0] if getattr(norm, "running_mean", None) is not None else None

    def _gain_after_second(self) -> Tensor:
        node = self.norm_after_second()
        if node is None:
            return torch.ones(self.c2, dtype=torch.float32)
        return _gain(as_module(self.traced, node), self.c2)

    def _hidden_moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each channel that conv2 reads, its inputs being Gaussian."""
        values = _normal(self.second.in_channels)
        for node in self.first_layers[1:]:
            values = self._propagate(node, values)
        return values.mean(0), values.var(0, unbiased=False)

    def _propagate(self, node: fx.Node, values: Tensor) -> Tensor:
        """Apply a norm (whose inputs are standard normal) or an activation to (samples, C)."""
        known, module = rule(self.traced, node), as_module(self.traced, node)
        if known.role is Role.NORM and module is not None:
            return affine(module, values)
        return pointwise(self.traced, node, values) if known.pointwise else values


def pointwise(traced: TracedModel, node: fx.Node, values: Tensor) -> Tensor:
    """Apply an activation to (samples, C)."""
    module = traced.module(node)
    if module is not None and not isinstance(module, nn.PReLU):
        return module(values)  # type: ignore[no-any-return]
    if node.op == "call_function":
        return node.target(values)  # type: ignore[operator, no-any-return]
    return values


def _gain(norm: nn.Module | None, channels: int) -> Tensor:
    weight, var = getattr(norm, "weight", None), getattr(norm, "running_var", None)
    scale = torch.ones(channels, dtype=torch.float32)
    if weight is not None:
        scale = weight.detach().float().cpu()
    if var is not None:
        scale = scale / (var.detach().float().cpu() + getattr(norm, "eps", 0.0)).sqrt()
    return scale


def affine(norm: nn.Module, values: Tensor) -> Tensor:
    """Apply a norm's scale, shift and activation to normalised values (samples, C)."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    values = values if weight is None else values * weight.detach().float().cpu()
    values = values if bias is None else values + bias.detach().float().cpu()
    act = getattr(norm, "act", None)
    return values if act is None else act(values)
