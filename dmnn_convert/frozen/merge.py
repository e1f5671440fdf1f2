"""Sub-blocks that always run together, as one: wider layers in the place of several narrow ones.

A value inside a sub-block is whole (the same for all of them), sliced (each holds channels of its
own) or summed (each holds a term). Layers that read whole values stand side by side; layers between
keep the channels apart; the last layer, which reads sliced channels, sums.
"""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .parts import Part


@dataclass(frozen=True)
class Whole:
    """A value that all sub-blocks have in common."""


@dataclass(frozen=True)
class Sliced:
    """A value of which each sub-block holds so many channels."""

    counts: tuple[int, ...]


@dataclass(frozen=True)
class Summed:
    """A value of which each sub-block holds a term: `by` sums what `terms` make."""

    by: nn.Module
    terms: tuple[Any, ...]


Kind = Whole | Sliced | Summed

_POINTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh),
    *(nn.LeakyReLU, nn.ELU, nn.Mish, nn.Hardtanh, nn.Softplus, nn.CELU, nn.SELU),
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.AvgPool2d, nn.MaxPool2d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d),
)
"""Layers without tensors that treat every channel alike."""

_POINTWISE_FUNCTIONS = (
    *(F.relu, F.relu6, F.silu, F.gelu, F.hardswish, F.hardsigmoid, F.dropout, F.leaky_relu),
    *(torch.relu, torch.sigmoid, torch.tanh, F.mish, F.elu),
)
_POINTWISE_METHODS = ("relu", "relu_", "sigmoid", "tanh", "contiguous", "clone")
_PRODUCTS = (operator.mul, torch.mul, operator.add, torch.add)


class _Unmerged(Exception):
    """Something that is not known to be the same when computed together."""


class Merged(NamedTuple):
    """Parts as one, and what its outputs are."""

    part: Part
    outputs: list[Kind]


def merged(parts: Sequence[Part], inputs: Sequence[Kind], *, sums: int) -> Merged | None:
    """Return parts of one structure as one; None if they have to stay apart.

    Args:
        parts: of the sub-blocks; their tensors are not touched.
        inputs: what each of their first inputs is; further ones are whole.
        sums: so many of the outputs, from the first one on, are summed over the sub-blocks.
    """
    if len({_structure(part) for part in parts}) > 1:
        return None
    try:
        result = _Merger(parts, inputs).run()
    except _Unmerged:
        return None
    return result if all(isinstance(kind, Summed) for kind in result.outputs[:sums]) else None


def _structure(part: Part) -> tuple[Any, ...]:
    index = {node: i for i, node in enumerate(part.graph.nodes)}
    return tuple(
        (n.op, str(n.target), tuple(index[i] for i in n.all_input_nodes)) for n in part.graph.nodes
    )


class _Merger:
    def __init__(self, parts: Sequence[Part], inputs: Sequence[Kind]) -> None:
        self.parts = parts
        self.rows = list(zip(*(part.graph.nodes for part in parts), strict=True))
        self.graph = fx.Graph()
        self.modules: dict[str, nn.Module] = {}
        self.tensors: dict[str, Tensor] = {}
        self.kinds: dict[fx.Node, Kind] = {}
        self.new: dict[fx.Node, fx.Node] = {}
        self.inputs = list(inputs)
        first = parts[0]
        dense = [n for n in first.graph.nodes if _is_dense(first.modules.get(str(n.target)))]
        self.followed = {n for n in dense if any(_reaches(n, other) for other in dense)}

    def run(self) -> Merged:
        first = self.parts[0]
        for row in self.rows:
            node = row[0]
            if node.op == "output":
                continue
            self.new[node] = self.graph.node_copy(node, self.new.__getitem__)
            self.kinds[node] = self._kind(row)
        outputs = [self.new[node] for node in first.outputs]
        self.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        part = Part(self.graph, self.modules, self.tensors)
        return Merged(part, [self.kinds[n] for n in first.outputs])

    def _kind(self, row: tuple[fx.Node, ...]) -> Kind:
        node = row[0]
        if node.op == "placeholder":
            return self.inputs.pop(0) if self.inputs else Whole()
        if node.op == "call_module":
            return self._module(row)
        if node.op == "get_attr":
            return self._tensor(str(node.target))
        if node.op == "call_method" and node.target == "narrow":
            return self._narrow(row)
        if not all(_alike(node, other) for other in row[1:]):
            raise _Unmerged
        kinds = [self.kinds[n] for n in node.all_input_nodes]
        if all(isinstance(kind, Whole) for kind in kinds):
            return Whole()
        return self._function(node, kinds)

    def _function(self, node: fx.Node, kinds: list[Kind]) -> Kind:
        sliced = [kind for kind in kinds if isinstance(kind, Sliced)]
        if len(sliced) != len(kinds) or len({kind.counts for kind in sliced}) != 1:
            raise _Unmerged
        one = len(kinds) == 1
        known = (
            (node.op == "call_function" and node.target in _POINTWISE_FUNCTIONS and one)
            or (node.op == "call_method" and node.target in _POINTWISE_METHODS and one)
            or (node.op == "call_function" and node.target in _PRODUCTS)
            or (node.target in ("mean", torch.mean) and one and _over_places(node))
        )
        if not known:
            raise _Unmerged
        return sliced[0]

    def _tensor(self, name: str) -> Kind:
        first, *others = (part.tensors[name] for part in self.parts)
        if not all(torch.equal(first, other) for other in others):
            raise _Unmerged
        self.tensors[name] = first
        return Whole()

    def _narrow(self, row: tuple[fx.Node, ...]) -> Kind:
        """Read neighbouring runs of channels of a whole value as one run."""
        node = row[0]
        runs = [(n.args[2], n.args[3]) for n in row]
        if not isinstance(self.kinds[node.all_input_nodes[0]], Whole):
            raise _Unmerged
        if any(a + n != b for (a, n), (b, _) in itertools.pairwise(runs)):  # type: ignore[operator]
            raise _Unmerged
        counts = tuple(int(n) for _, n in runs)  # type: ignore[arg-type]
        self.new[node].args = (*self.new[node].args[:2], runs[0][0], sum(counts))
        return Sliced(counts)

    # --- layers -------------------------------------------------------------------------------

    def _module(self, row: tuple[fx.Node, ...]) -> Kind:
        node = row[0]
        name = str(node.target)
        layers = [part.modules[name] for part in self.parts]
        read = node.all_input_nodes
        if len({type(layer) for layer in layers}) > 1 or len(read) != 1 or name in self.modules:
            if name in self.modules and not layers[0].state_dict():
                return self._apart(layers[0], self.kinds[read[0]])
            raise _Unmerged
        kind = self.kinds[read[0]]
        if _is_dense(layers[0]):
            self.modules[name], kind = self._dense(node, layers, kind)
        elif isinstance(kind, Summed):
            self.modules[name] = self._on_the_sum(layers, kind, only=len(read[0].users) == 1)
        elif layers[0].state_dict():
            self.modules[name] = _channel_wise(layers, kind)
        else:
            kind = self._apart(layers[0], kind)
            self.modules[name] = copy.deepcopy(layers[0])
        return kind

    def _apart(self, layer: nn.Module, kind: Kind) -> Kind:
        if isinstance(kind, Whole) or isinstance(layer, _POINTWISE_MODULES):
            if isinstance(kind, Summed) and not isinstance(layer, nn.Identity):
                raise _Unmerged
            return kind
        raise _Unmerged

    def _dense(self, node: fx.Node, layers: list[Any], kind: Kind) -> tuple[nn.Module, Kind]:
        grouped = getattr(layers[0], "groups", 1) > 1
        if isinstance(kind, Whole) and not grouped:
            return _stacked(layers, 1), Sliced(tuple(map(_rows, layers)))
        if not isinstance(kind, Sliced):
            raise _Unmerged
        if grouped or (node in self.followed and isinstance(layers[0], _ConvNd)):
            if len({(_rows(x) // x.groups, x.weight.shape[1]) for x in layers}) > 1:
                raise _Unmerged
            groups = sum(layer.groups for layer in layers)
            return _stacked(layers, groups), Sliced(tuple(map(_rows, layers)))
        if node in self.followed:
            raise _Unmerged
        layer = _summing(layers)
        return layer, Summed(layer, tuple(layers))

    def _on_the_sum(self, layers: list[Any], kind: Summed, *, only: bool) -> nn.Module:
        """Return the norms of the terms as one norm of the sum; the summing layer is rescaled."""
        if not all(isinstance(layer, _BatchNorm) for layer in layers) or not only:
            raise _Unmerged
        if any(layer.running_var is None for layer in layers):
            raise _Unmerged
        scale = torch.stack([_scale(layer) for layer in layers])
        largest = scale.abs().argmax(0, keepdim=True)
        reference = scale.gather(0, largest)
        ratio = torch.where(reference == 0, torch.ones_like(scale), scale / reference)
        _rescale(kind, ratio)
        norm: nn.Module = copy.deepcopy(layers[0])
        with torch.no_grad():
            for name in ("weight", "running_var"):
                tensors = [getattr(layer, name) for layer in layers]
                if tensors[0] is not None:
                    getattr(norm, name).copy_(torch.stack(tensors).gather(0, largest)[0])
            means = torch.stack([layer.running_mean.double() for layer in layers])
            norm.running_mean.copy_((means * ratio).sum(0))
            if norm.bias is not None:
                norm.bias.copy_(torch.stack([layer.bias.double() for layer in layers]).sum(0))
        return norm


def _is_dense(module: nn.Module | None) -> bool:
    return isinstance(module, _ConvNd | nn.Linear)


def _rows(layer: Any) -> int:
    return int(layer.weight.shape[0])


def _reaches(node: fx.Node, other: fx.Node) -> bool:
    """Return whether a value flows from one node into another one."""
    seen, waiting = set(), list(node.users)
    while waiting:
        user = waiting.pop()
        if user is other:
            return True
        if user not in seen:
            seen.add(user)
            waiting += user.users
    return False


def _alike(node: fx.Node, other: fx.Node) -> bool:
    """Return whether two calls have the same constants."""

    def constants(n: fx.Node) -> list[Any]:
        found: list[Any] = []
        fx.node.map_aggregate((n.args, n.kwargs), lambda a: found.append(_constant(a)))
        return found

    return bool(constants(node) == constants(other))


def _constant(value: Any) -> Any:
    return None if isinstance(value, fx.Node) else repr(value)


def _over_places(node: fx.Node) -> bool:
    """Return whether a mean of maps leaves batch and channels alone."""
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return dims in ((2, 3), [2, 3], (-2, -1), [-2, -1], (-1, -2), [-1, -2])


# --- layers as one --------------------------------------------------------------------------------


def _like(layer: Any, tensors: dict[str, Tensor | None]) -> Any:
    """Return a copy of a layer with other tensors."""
    new = copy.deepcopy(layer)
    for name, tensor in tensors.items():
        if name in new._parameters:
            before = new._parameters[name]
            value = None if tensor is None else nn.Parameter(tensor, before.requires_grad)
            new._parameters[name] = value
        else:
            new._buffers[name] = tensor
    return new


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    own = {**layer._parameters, **layer._buffers}
    return {name: tensor.detach() for name, tensor in own.items() if tensor is not None}


def _resized(layer: Any, rows: int, columns: int, groups: int) -> Any:
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = rows, columns
    else:
        layer.out_channels, layer.in_channels, layer.groups = rows, columns, groups
    return layer


def _stacked(layers: Sequence[Any], groups: int) -> nn.Module:
    """Return layers side by side: their outputs are concatenated."""
    found = [_tensors(layer) for layer in layers]
    new = _like(layers[0], {n: torch.cat([f[n] for f in found]) for n in found[0]})
    columns = new.weight.shape[1] * groups
    return _resized(new, _rows(new), columns, groups)  # type: ignore[no-any-return]


def _summing(layers: Sequence[Any]) -> nn.Module:
    """Return layers one after another in their inputs: their outputs are summed."""
    if any(_tensors(layer).keys() - {"weight", "bias"} for layer in layers):
        raise _Unmerged
    weight = torch.cat([layer.weight.detach() for layer in layers], 1)
    bias = None
    if layers[0].bias is not None:
        bias = torch.stack([layer.bias.detach() for layer in layers]).sum(0)
    new = _like(layers[0], {"weight": weight, "bias": bias})
    return _resized(new, _rows(new), weight.shape[1], 1)  # type: ignore[no-any-return]


def _scale(norm: Any) -> Tensor:
    scale: Tensor = (norm.running_var.detach().double() + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight.detach().double()


def _rescale(kind: Summed, ratio: Tensor) -> None:
    """Scale each term of a summing layer by its ratio, (terms, rows)."""
    layer: Any = kind.by
    if torch.equal(ratio, torch.ones_like(ratio)):
        return
    scaled = [
        own.double().unsqueeze(1) * x.weight.detach().double().flatten(1)
        for own, x in zip(ratio, kind.terms, strict=True)
    ]
    shaped = [w.view_as(x.weight) for w, x in zip(scaled, kind.terms, strict=True)]
    with torch.no_grad():
        layer.weight.copy_(torch.cat(shaped, 1))
        if layer.bias is not None:
            biases = torch.stack([x.bias.double() for x in kind.terms])
            layer.bias.copy_((ratio * biases).sum(0))


def _channel_wise(layers: Sequence[Any], kind: Kind) -> nn.Module:
    """Return layers with a tensor entry a channel as one."""
    # A norm's activation is a child of it.
    inner = any(child.state_dict() for layer in layers for child in layer.children())
    if inner or not isinstance(kind, Sliced):
        raise _Unmerged
    found = [_tensors(layer) for layer in layers]
    joined: dict[str, Tensor | None] = {}
    for name in found[0]:
        tensors = [own[name] for own in found]
        if all(t.dim() == 1 and len(t) == n for t, n in zip(tensors, kind.counts, strict=True)):
            joined[name] = torch.cat(tensors)
        elif all(t.dim() == 0 for t in tensors):
            joined[name] = tensors[0].clone()
        else:
            raise _Unmerged
    new = _like(layers[0], joined)
    if isinstance(new, nn.GroupNorm):
        if len({n // layer.num_groups for n, layer in zip(kind.counts, layers, strict=True)}) > 1:
            raise _Unmerged
        new.num_groups = sum(layer.num_groups for layer in layers)
    for name in ("num_features", "num_parameters", "num_channels", "channels"):
        if getattr(layers[0], name, None) == kind.counts[0] and kind.counts[0] > 1:
            setattr(new, name, sum(kind.counts))
    return new  # type: ignore[no-any-return]
