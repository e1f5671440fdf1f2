"""The gate controllers: small chained networks that decide which sub-blocks run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import GateConfig
from ..errors import ArgumentError
from .float32 import bias_of, called, without_autocast
from .gate_chain import Forcing, GateChain
from .gumbel import (
    gumbel_noise,
    hard_gates,
    nested_gates,
    on_margin,
    straight_through,
    with_one_kept,
)
from .level_statistics import LevelStatistics
from .recomputation import Met, may_be_computed_again, met_before, remember
from .start_rates import nested_rates, start_rates

_TINY = 1e-6
"""Added to the variance of margins, which pooled features leave small."""


class GateController(nn.Module):
    """Decide for each image which sub-blocks of one block run (eq. 5-8).

    ``z = mean(x)``, ``V = relu(W1 z)``, ``h = V + relu(W2 h_before)``, ``logits = W3 h + b3``;
    W3 starts at zero and b3 at the logits of `start_rates`, so that the execution probability is
    exactly that for every input. All of it is float32, whatever the autocast dtype.

    With a `spread`, the on-margin that W3 h gives each sub-block is normalised over the batch to
    that standard deviation before b3 is added (in evaluation, by running statistics), and W3 starts
    at random. b3 then decides how often a sub-block runs, and W3 for which images; W3 cannot decide
    alike for all of them.

    Attributes:
        generator: source of the Gumbel noise; None for PyTorch's global one.
        channel_dim: where the channels of the input stand, 1 or -1.
        keep_one: whether at least one sub-block always runs (blocks without a shortcut).
        nested: whether a sub-block runs only if those before it do.
        levels: statistics of levels, kept by the model's first controller; see `budget`.
        offset: added to every on-margin by a budget, () float32; None before `set_budget`.
    """

    def __init__(
        self,
        channels: int,
        N: int,
        config: GateConfig,
        chain: GateChain,
        position: int,
        *,
        channel_dim: int = 1,
        keep_one: bool = False,
        nested: bool = False,
        num_categories: int | None = None,
    ) -> None:
        super().__init__()
        self.N, self.tau, self.keep_one, self.nested = N, config.tau, keep_one, nested
        self.channel_dim = channel_dim
        self.chain, self.position = chain, position
        self.generator: torch.Generator | None = None
        d = config.hidden
        self.norm = nn.BatchNorm1d(channels, affine=False) if config.normalized else None
        self.w1 = nn.Linear(channels, d, bias=False)
        reads_previous = config.chained and position > 0
        self.w2 = nn.Linear(d, d, bias=False) if reads_previous else None
        self.w3 = nn.Linear(d, 2 * N)
        self.spread = config.spread
        self.margin_norm = nn.BatchNorm1d(N, _TINY, affine=False) if config.spread else None
        self.category_head = nn.Linear(d, num_categories) if num_categories else None
        self.levels: LevelStatistics | None = None
        self.offset: Tensor | None
        self.register_buffer("offset", None)
        rates = start_rates(N, config.init_rate, config.certainty)
        self._start_at(nested_rates(rates, keep_one=keep_one) if nested else rates)

    def _start_at(self, rates: Sequence[float]) -> None:
        half = torch.tensor([self._margin_at(rate) / 2 for rate in rates])
        with torch.no_grad():
            if self.margin_norm is None:
                self.w3.weight.zero_()
            self.w3.bias.copy_(torch.stack([-half, half], -1).flatten())

    def _margin_at(self, rate: float) -> float:
        """Return the on-margin at which a sub-block runs at this rate."""
        if not self.spread:
            return math.log(rate) - math.log1p(-rate)
        # Roughly where margins of that spread, with Gumbel noise, are above zero at this rate.
        noise = math.pi**2 / 3
        return NormalDist().inv_cdf(rate) * math.sqrt(self.spread**2 + noise)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gates (B, N), float32 zeros and ones, of x (B, C, ...) or (B, ..., C)."""
        again = met_before(self.chain, self.position)
        with without_autocast(x.device.type):
            before = self.chain.take(self.position) if again is None else again.before
            hidden = self._hidden(x, before)
            gate_logits = self.gate_logits(hidden)
            met = self._met(before, gate_logits) if again is None else self._draw_again(again)
            gates = self._decided(gate_logits, met)
            categories = self._categories(hidden) if met.recorded else None
            if again is None:
                self.chain.put(self.position, hidden)
                remember(self.chain, self.position, met)
                recorder = self.chain.recorder
                if recorder is not None:
                    recorder.add(self.position, gates, categories, gate_logits)
        return gates

    def path(self) -> tuple[int, ...] | None:
        """Return which sub-blocks alone to compute, if that is forced and nothing records it."""
        forcing = self.chain.forcing
        if forcing is None or self.chain.recorder is not None or may_be_computed_again():
            return None
        return forcing.path(self.position, training=self.training)

    def _hidden(self, x: Tensor, before: Tensor | None) -> Tensor:
        pooled = _mean_over_places(x, self.channel_dim)
        hidden = F.relu(called(self.w1, self._normalized(self.norm, pooled)))
        if self.w2 is not None and before is not None and _of_one_batch(before, hidden):
            hidden = hidden + F.relu(called(self.w2, before))
        return hidden

    def _met(self, before: Tensor | None, gate_logits: Tensor) -> Met:
        forcing, recorded = self.chain.forcing, self.chain.recorder is not None
        if forcing is not None:
            return Met(before, self._forced(forcing, gate_logits), None, recorded)
        noise = gumbel_noise(gate_logits, self.generator) if self.training else None
        return Met(before, None, noise, recorded)

    def _draw_again(self, met: Met) -> Met:
        """Repeat the known draw, so that later operations of the region draw as before."""
        if met.noise is not None and self.generator is None:
            gumbel_noise(met.noise)
        return met

    def gate_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (B, N, 2), (off, on), of a hidden state (B, d)."""
        logits = self._own_logits(hidden)
        if self.offset is None:
            return logits
        return logits + torch.stack([-self.offset, self.offset]) / 2

    def _own_logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = called(self.w3, hidden).unflatten(-1, (self.N, 2))
        if self.margin_norm is None:
            return logits
        bias = bias_of(self.w3, hidden.shape[-1]).view(self.N, 2)
        margin = (logits - bias).diff(dim=-1).squeeze(-1)
        half: Tensor = self.spread * self._normalized(self.margin_norm, margin) / 2
        return torch.stack([bias[:, 0] - half, bias[:, 1] + half], -1)

    def _normalized(self, norm: nn.BatchNorm1d | None, x: Tensor) -> Tensor:
        if norm is None:
            return x
        if norm.training and len(x) == 1:  # one image alone has no statistics
            return F.batch_norm(x, norm.running_mean, norm.running_var, eps=norm.eps)
        return norm(x)  # type: ignore[no-any-return]

    def _apply(self, *args: Any, **kwargs: Any) -> GateController:
        """Keep norms and offset in float32, like their inputs, when the dtype changes."""
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        for norm in (self.norm, self.margin_norm):
            if norm is not None:
                norm.float()
        if self.offset is not None:
            self.offset = self.offset.float()
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Have an offset, and statistics of levels, if a state of this controller has them."""
        if f"{prefix}w3.bias" in state_dict:
            self.make_room(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def make_room(self, state: Mapping[str, Any], prefix: str) -> None:
        """Add the offset and the statistics of levels that a state has; remove what it has not."""
        if self.levels is not None:
            self.levels.check_own("load_state_dict")
        device = self.w3.weight.device
        self.offset = torch.zeros((), device=device) if f"{prefix}offset" in state else None
        levels = LevelStatistics.room_for(state, f"{prefix}levels.")
        fits = levels is not None and levels.paths.shape[1:] == (sum(self.chain.sizes),)
        self.levels = levels.to(device).train(self.training) if levels and fits else None

    def _decided(self, gate_logits: Tensor, met: Met) -> Tensor:
        """Return the gates (B, N) for logits (B, N, 2), or the forced ones."""
        if met.forced is not None:
            return met.forced
        keep_one = self.keep_one and not self.nested
        if met.noise is None:
            gates = hard_gates(gate_logits, keep_one=keep_one)
        else:
            gates = straight_through(gate_logits + met.noise, self.tau, keep_one=keep_one)
        return nested_gates(gates, keep_one=self.keep_one) if self.nested else gates

    def _forced(self, forcing: Forcing, gate_logits: Tensor) -> Tensor:
        gates = forcing.gates(self.position, len(gate_logits), self.chain.sizes)
        gates = gates.to(gate_logits.device, torch.float32)
        if self.nested:
            return nested_gates(gates, keep_one=self.keep_one)
        return with_one_kept(gates, on_margin(gate_logits)) if self.keep_one else gates

    def _categories(self, hidden: Tensor) -> Tensor | None:
        if self.category_head is None or not self.training:
            return None
        return called(self.category_head, hidden)

    def extra_repr(self) -> str:
        """Show the attributes besides the sub-modules."""
        return f"N={self.N}, tau={self.tau}, position={self.position}"


def _mean_over_places(x: Tensor, channel_dim: int) -> Tensor:
    """Return the mean of each image's channels, (B, C) float32, of x (B, C, ...) or (B, ..., C)."""
    first = 2 if channel_dim == 1 else 1
    places = tuple(range(first, first + x.dim() - 2))
    if not places:
        return x.float()
    # The gradient of a sum takes no memory of the input's size, as that of a mean would.
    return x.sum(places, dtype=torch.float32) / math.prod([x.shape[i] for i in places])


def _of_one_batch(before: Tensor, hidden: Tensor) -> bool:
    # A block that takes windows for images leaves a state that belongs to none of these. While
    # torch.jit traces, sizes are tensors, which must not be compared.
    return torch._C._get_tracing_state() is not None or before.shape[0] == hidden.shape[0]


def controllers(model: nn.Module) -> list[GateController]:
    """Return the model's controllers in execution order.

    Raises:
        ArgumentError: if it is not a model, or holds none, or those of two conversions.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"got a {type(model).__name__}, not a model; dynamize returns two things: "
            "model, table = dmnn_convert.dynamize(net)."
        )
    found = [m for m in model.modules() if isinstance(m, GateController)]
    if not found:
        raise ArgumentError(
            f"{type(model).__name__} holds no gate controllers; convert it first: "
            "model, table = dmnn_convert.dynamize(model)."
        )
    if len({id(c.chain) for c in found}) > 1:
        raise ArgumentError(
            f"{type(model).__name__} holds two converted models; name the one that is meant."
        )
    return sorted(found, key=lambda c: c.position)


def gate_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the controllers' own parameters, for a learning rate or a count of their own.

    Example:
        >>> gates = list(gate_parameters(model))
        >>> own = {id(parameter) for parameter in gates}
        >>> rest = [p for p in model.parameters() if id(p) not in own]
        >>> optimizer = torch.optim.SGD([{"params": rest}, {"params": gates, "lr": 0.3}], lr=0.05)
    """
    for controller in controllers(model):
        yield from controller.parameters()


def strip_category_heads(model: nn.Module) -> None:
    """Drop the category heads, which serve training only, from the model and its state_dict.

    Example:
        >>> net, _ = dynamize(Net(), input_size=(3, 16, 16), num_categories=2)
        >>> strip_category_heads(net)
    """
    for controller in controllers(model):
        controller.category_head = None
