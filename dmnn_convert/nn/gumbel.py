"""Gumbel-softmax gates: straight-through samples and hard decisions."""

from __future__ import annotations

from itertools import accumulate
from operator import mul

import torch
from torch import Tensor

from ..errors import ArgumentError


def gumbel_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw Gumbel(0, 1) noise in float32, of the shape of `like`."""
    uniform = torch.empty_like(like, dtype=torch.float32).exponential_(generator=generator)
    # An exponential variate of exactly zero would give infinite noise.
    return -uniform.clamp_min(torch.finfo(torch.float32).tiny).log()


def straight_through_gates(
    gate_logits: Tensor,
    tau: float = 1.0,
    *,
    keep_one: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample gates by the straight-through Gumbel-softmax (eq. 8): hard forward, soft gradient.

    Args:
        gate_logits: (B, N, 2), the last dimension being (off, on).
        tau: temperature of the soft gradient, > 0.
        keep_one: where a row samples no sub-block, run the one with the largest on-margin.
        generator: source of the noise; None for PyTorch's global one.

    Returns:
        (B, N) float32 of exact zeros and ones.

    Raises:
        ArgumentError: if tau is not > 0.
    """
    if not tau > 0:
        raise ArgumentError(f"straight_through_gates(tau={tau}): the temperature must be > 0.")
    noisy = gate_logits.float() + gumbel_noise(gate_logits, generator)
    return straight_through(noisy, tau, keep_one=keep_one)


def straight_through(noisy: Tensor, tau: float, *, keep_one: bool = False) -> Tensor:
    """Return the gates (B, N) of logits (B, N, 2) that noise was added to: soft gradients only."""
    soft = (noisy / tau).softmax(-1)[..., 1]
    hard = hard_gates(noisy, keep_one=keep_one)
    # (soft - soft) is an exact zero, so the forward value stays exactly 0 or 1.
    return hard + (soft - soft.detach())


def hard_gates(gate_logits: Tensor, *, keep_one: bool = False) -> Tensor:
    """Decide gates by argmax, without noise: (B, N, 2) logits to (B, N) float32 zeros and ones."""
    margin = on_margin(gate_logits)
    return with_one_kept((margin > 0).float(), margin) if keep_one else (margin > 0).float()


def on_margin(gate_logits: Tensor) -> Tensor:
    """Return the margin of "on" over "off": (B, N, 2) logits to (B, N) float32."""
    logits = gate_logits.detach().float()
    return logits[..., 1] - logits[..., 0]


def with_one_kept(gates: Tensor, margin: Tensor) -> Tensor:
    """Turn on the sub-block with the largest margin in each row of `gates` that is all off."""
    # By comparison, because other ways name sizes, which an export would freeze.
    places = torch.arange(gates.shape[-1], device=gates.device)
    best = (margin.argmax(-1, keepdim=True) == places).to(gates.dtype)
    return torch.where(gates.sum(-1, keepdim=True) > 0, gates, best)


def ones_of(gates: Tensor) -> Tensor:
    """Return as many ones as there are gates, of no size that an export would freeze."""
    return (gates.detach() >= 0).to(gates.dtype)


def nested_gates(gates: Tensor, *, keep_one: bool = False) -> Tensor:
    """Turn off every gate (B, N) after one that is off; keep the first one on if asked.

    Differentiable: a gate gets the gradient of all that depend on it.
    """
    first, *others = gates.unbind(-1)
    if keep_one:
        first = ones_of(first)
    return torch.stack(list(accumulate([first, *others], mul)), -1)
