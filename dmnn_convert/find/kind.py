"""Kinds of branches: basic, bottleneck, inverted residual, others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from ..channels import Hidden, conv_of, is_plain_conv, layer_of, tensor_inputs
from ..graph import Role, Rule, TracedModel
from .tail import Tail


def kind(
    traced: TracedModel,
    rules: Mapping[fx.Node, Rule],
    trunk: Sequence[fx.Node],
    hidden: Hidden,
    tail: Tail,
    body: Sequence[fx.Node],
) -> str:
    """Return the name of a branch's kind, which decides nothing else."""
    layers = [layer for n in trunk if (layer := layer_of(traced, n))]
    grouped = [c for n in body if rules[n].role is Role.GROUPED and (c := conv_of(traced, n))]
    made = [layer for n in hidden.producers if (layer := layer_of(traced, n))]
    # Beside a convolution, a linear layer makes channels of a condition.
    first = [layer for layer in made if isinstance(layer, _ConvNd)] or made
    last = [layer for n in tail.consumers if (layer := layer_of(traced, n))]
    if len(last) > 1 or (layers and len(layers) > 1):
        return "residual"
    if layers:
        return _kind_with_trunk(traced, rules, trunk, hidden, body, layers[0], last[0])
    if not first:
        return "depthwise-separable" if grouped else "residual"
    if isinstance(last[0], nn.Linear) or (_is_pointwise(*first, *last) and not grouped):
        return "mlp"
    if grouped:
        depthwise = all(conv.groups == conv.in_channels for conv in grouped)
        return "inverted-residual" if depthwise else "grouped-bottleneck"
    fused = _is_pointwise(*last) and not _is_pointwise(first[0])
    return "fused-inverted-residual" if fused else "basic"


def _kind_with_trunk(
    traced: TracedModel,
    rules: Mapping[fx.Node, Rule],
    trunk: Sequence[fx.Node],
    hidden: Hidden,
    body: Sequence[fx.Node],
    first: _ConvNd | nn.Linear,
    last: _ConvNd | nn.Linear,
) -> str:
    if isinstance(first, _ConvNd) and first.groups == first.in_channels > 1:
        return "convnext" if hidden.producers else "depthwise-separable"
    layers = [first, last, *(layer_of(traced, n) for n in hidden.producers)]
    plain = len(layers) == 3 and all(is_plain_conv(m) for m in layers)
    plain = plain and all(getattr(m, "groups", 1) == 1 for m in layers)
    straight = not hidden.entries and not hidden.reducers and _is_straight(rules, trunk)
    norms_by_batch = all(
        rules[n].role in (Role.NORM, Role.CHANNELWISE, Role.DENSE) for n in (*trunk, *body)
    )
    return "bottleneck" if plain and straight and norms_by_batch else "residual"


def _is_pointwise(*layers: _ConvNd | nn.Linear) -> bool:
    return all(isinstance(m, nn.Linear) or set(m.kernel_size) == {1} for m in layers)


def _is_straight(rules: Mapping[fx.Node, Rule], trunk: Sequence[fx.Node]) -> bool:
    """Return whether the trunk is one dense convolution among channel-wise operations."""
    known = all(rules[n].role is not Role.OTHER for n in trunk)
    dense = [n for n in trunk if rules[n].role in (Role.DENSE, Role.GROUPED)]
    single = all(len(tensor_inputs(n)) == 1 and len(n.users) == 1 for n in trunk)
    return known and single and len(dense) == 1 and rules[dense[0]].role is Role.DENSE
