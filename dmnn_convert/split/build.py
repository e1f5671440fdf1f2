"""Build the modules of a multi-path block: trunk, sub-blocks, and what runs on the gated sum."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from ..branch import Branch, NotSplittable, conv_of
from ..ops import Role, rule, tensor_inputs
from ..trace import Trace
from .program import as_module, local_name, program
from .select import Choice, energy_choice
from .slices import share_out, slice_channels, slice_conv


@dataclass(frozen=True)
class Parts:
    """What a branch was cut into; see `MultiPathBlock` for the fields."""

    sub_blocks: tuple[nn.Module, ...]
    trunk: nn.Module | None
    post: nn.Module | None
    tail_norm: str | None
    dense_weights: dict[str, int] = field(default_factory=dict)


def split_block(traced: Trace, branch: Branch, N: int, widths: tuple[int, int] | None) -> Parts:
    """Cut a branch into N sub-blocks that inherit its weights.

    Args:
        traced: the model that holds the branch.
        branch: what to cut.
        N: number of sub-blocks.
        widths: (Ĉ1, Ĉ2) for the matched-width split; None splits exactly.

    Raises:
        NotSplittable: if fewer independent channels than sub-blocks remain.
    """
    reason = too_narrow(branch, N)
    if reason is not None:
        raise NotSplittable(reason)
    cutter = _Cutter(traced, branch, N)
    return cutter.exact() if widths is None else cutter.matched(widths)


def too_narrow(branch: Branch, N: int) -> str | None:
    """Say why a branch cannot be cut into N sub-blocks; None if it can."""
    if branch.units >= N:
        return None
    groups = f" in {branch.units} independent groups" if branch.units < branch.hidden else ""
    return f"{branch.hidden} hidden channels{groups}, fewer than {N} sub-blocks"


class _Cutter:
    def __init__(self, traced: Trace, branch: Branch, N: int) -> None:
        self.traced, self.branch, self.N = traced, branch, N
        self.enclosing = branch.enclosing

    def exact(self) -> Parts:
        """Share out the hidden channels in even runs of independent units."""
        branch = self.branch
        counts = self._hidden_counts()
        runs = torch.arange(branch.units).tensor_split(self.N)
        sub_blocks = []
        for units in runs:
            channels = {
                node: _spread(units, count // branch.units) for node, count in counts.items()
            }
            sub_blocks.append(self._sub_block(branch.body, channels, len(units) / branch.units))
        return self._parts(sub_blocks, branch.trunk)

    def matched(self, widths: tuple[int, int]) -> Parts:
        """Make N narrower bottlenecks of the channels between which the most energy flows."""
        branch = self.branch
        start = next(i for i, n in enumerate(branch.trunk) if conv_of(self.traced, n))
        shared, first_layers = branch.trunk[:start], branch.trunk[start:]
        bottleneck = _Bottleneck(self.traced, branch, first_layers)
        choice = energy_choice(bottleneck.coupling(), widths, self.N)
        copies = choice.copies(bottleneck.c2)
        sub_blocks = []
        for n in range(self.N):
            channels = dict.fromkeys(first_layers, choice.first[n])
            channels |= dict.fromkeys(branch.body, choice.second[n])
            sub_block = self._sub_block((*first_layers, *branch.body), channels, 1.0)
            self._compensate(sub_block, bottleneck, choice, n, copies)
            sub_blocks.append(sub_block)
        return self._parts(sub_blocks, shared)

    def _compensate(
        self, sub_block: nn.Module, bottleneck: _Bottleneck, choice: Choice, n: int, copies: Tensor
    ) -> None:
        """Halve the weight of channels held twice; keep the mean of what is left out."""
        kept = choice.second[n]
        weight = self._tensor(sub_block, self.branch.consumer, "weight")
        scale = (1 / copies[kept].to(weight)).view(1, -1, *(1,) * (weight.dim() - 2))
        with torch.no_grad():
            weight.mul_(scale)
        norm = bottleneck.norm_after_second()
        if norm is not None:
            mean = self._tensor(sub_block, norm, "running_mean")
            mean.sub_(bottleneck.missing_mean(choice.first[n])[kept].to(mean))

    def _tensor(self, sub_block: nn.Module, node: fx.Node, name: str) -> Tensor:
        module = sub_block.get_submodule(local_name(node, self.enclosing))
        tensor: Tensor = getattr(module, name)
        return tensor

    # --- pieces -------------------------------------------------------------------------------

    def _hidden_counts(self) -> dict[fx.Node, int]:
        counts: dict[fx.Node, int] = {}
        for node in self.branch.body:
            if node is self.branch.consumer:
                break
            conv = conv_of(self.traced, node)
            counts[node] = conv.out_channels if conv else counts[tensor_inputs(node)[0]]
        return counts

    def _sub_block(
        self, nodes: Sequence[fx.Node], channels: Mapping[fx.Node, Tensor], share: float
    ) -> nn.Module:
        after = set(nodes[list(nodes).index(self.branch.consumer) :])
        modules: dict[fx.Node, nn.Module] = {}
        for node in nodes:
            source = as_module(self.traced, node)
            if source is not None:
                kept = None if node in after else channels[node]
                modules[node] = self._slice(node, source, kept, channels, share)
                if node in after:
                    share_out(modules[node], self.N)
        return self._program(nodes, modules)

    def _slice(
        self,
        node: fx.Node,
        source: nn.Module,
        kept: Tensor | None,
        channels: Mapping[fx.Node, Tensor],
        share: float,
    ) -> nn.Module:
        if not isinstance(source, _ConvNd):
            count = 0 if kept is None else self._channel_count(node)
            return slice_channels(source, kept, count)
        if source.groups > 1:
            return slice_conv(source, kept, None, round(source.groups * share))
        return slice_conv(source, kept, channels.get(tensor_inputs(node)[0]))

    def _channel_count(self, node: fx.Node) -> int:
        conv = conv_of(self.traced, node)
        return conv.out_channels if conv else self._channel_count(tensor_inputs(node)[0])

    def _program(self, nodes: Sequence[fx.Node], modules: Mapping[fx.Node, nn.Module]) -> nn.Module:
        inside = set(nodes)
        entry = next(i for n in nodes for i in tensor_inputs(n) if i not in inside)
        return program(self.traced, nodes, entry, modules, self.enclosing)

    def _whole(self, nodes: Sequence[fx.Node]) -> nn.Module | None:
        """Return a module of unchanged layers; parameters are the model's own."""
        if not nodes:
            return None
        modules = {n: m for n in nodes if (m := as_module(self.traced, n)) is not None}
        modules = {
            n: copy.deepcopy(m, {id(p): p for p in m.parameters()}) for n, m in modules.items()
        }
        return self._program(nodes, modules)

    def _parts(self, sub_blocks: Sequence[nn.Module], shared: Sequence[fx.Node]) -> Parts:
        branch = self.branch
        norms = [n for n in self._tail() if rule(self.traced, n).role is Role.NORM]
        return Parts(
            sub_blocks=tuple(sub_blocks),
            trunk=self._whole(shared),
            post=self._whole(branch.post),
            tail_norm=local_name(norms[0], self.enclosing) if norms else None,
            dense_weights={
                local_name(n, self.enclosing): conv.weight.numel()
                for n in (*branch.trunk, *branch.body)
                if (conv := conv_of(self.traced, n))
            },
        )

    def _tail(self) -> Iterator[fx.Node]:
        body = self.branch.body
        yield from body[body.index(self.branch.consumer) + 1 :]


def _spread(units: Tensor, width: int) -> Tensor:
    """Return the channels of units of `width` channels each."""
    return (units[:, None] * width + torch.arange(width)).flatten()


class _Bottleneck:
    """A dense bottleneck's statistics, estimated from its weights and norms without data."""

    def __init__(self, traced: Trace, branch: Branch, first_layers: Sequence[fx.Node]) -> None:
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
        """Return what each input channel adds to the output's variance through each middle one.

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
        quantiles = (torch.arange(64, dtype=torch.float32) + 0.5) / 64
        normal = torch.special.ndtri(quantiles)[:, None].repeat(1, self.second.in_channels)
        values = normal
        for node in self.first_layers[1:]:
            values = self._propagate(node, values)
        return values.mean(0), values.var(0, unbiased=False)

    def _propagate(self, node: fx.Node, values: Tensor) -> Tensor:
        """Apply a norm (whose inputs are standard normal) or an activation to (samples, C)."""
        known, module = rule(self.traced, node), as_module(self.traced, node)
        if known.role is Role.NORM and module is not None:
            return _affine(module, values)
        if known.pointwise and module is not None and not isinstance(module, nn.PReLU):
            return module(values)  # type: ignore[no-any-return]
        if known.pointwise and node.op == "call_function":
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


def _affine(norm: nn.Module, values: Tensor) -> Tensor:
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    values = values if weight is None else values * weight.detach().float().cpu()
    values = values if bias is None else values + bias.detach().float().cpu()
    act = getattr(norm, "act", None)
    return values if act is None else act(values)
