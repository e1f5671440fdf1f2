"""The selection of channels for narrower bottlenecks: those between which most energy flows.

A sub-block that keeps the set A of the first hidden channels and B of the second loses, for each
j in B, the contribution of the missing inputs. `couplings` estimates this from the weights and
norm statistics alone; `energy_choice` looks for the sets that lose least.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 6
"""Most alternations between choosing A and B; they end where nothing improves."""


SETTLED = 0.003
"""Relative improvement below which an alternation is the last."""


@dataclass(frozen=True)
class ChannelChoice:
    """Channels of each sub-block: `first[n]` of conv1's output, `second[n]` of conv2's."""

    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]

    def copies(self, channels: int) -> Tensor:
        """Return how many sub-blocks hold each of conv2's output channels, (C2,)."""
        return torch.bincount(torch.cat(self.second), minlength=channels)


def index_choice(c1: int, c2: int, widths: tuple[int, int], N: int) -> ChannelChoice:
    """Keep evenly spaced runs of consecutive channels, by index."""
    return ChannelChoice(_runs(c1, widths[0], N), _runs(c2, widths[1], N))


def energy_choice(coupling: Tensor, widths: tuple[int, int], N: int) -> ChannelChoice:
    """Choose sets that lose the least of `coupling` (C2, C1), starting from index slices."""
    c2, c1 = coupling.shape
    best = index_choice(c1, c2, widths, N)
    if N == 1:
        return best
    least = lost_energy(coupling, best)
    for start in (best, ChannelChoice(best.first, _by_similarity(coupling, widths[1], N))):
        choice = start
        before = math.inf
        for _ in range(ROUNDS):
            first = _choose_first(coupling, choice.second, widths[0])
            choice = ChannelChoice(first, _choose_second(coupling, first, widths[1]))
            lost = lost_energy(coupling, choice)
            if lost < least:
                best, least = choice, lost
            if lost > before * (1 - SETTLED):
                break
            before = lost
    return best


def strongest_first(coupling: Tensor, choice: ChannelChoice) -> ChannelChoice:
    """Return the same sets, those between which the most of `coupling` (C2, C1) flows first."""
    pairs = list(zip(choice.first, choice.second, strict=True))
    pairs.sort(key=lambda sets: float(coupling[sets[1]][:, sets[0]].sum()), reverse=True)
    return ChannelChoice(tuple(first for first, _ in pairs), tuple(second for _, second in pairs))


def lost_energy(coupling: Tensor, choice: ChannelChoice) -> float:
    """Return the share of the coupling (C2, C1) that a choice loses, in [0, 1]."""
    copies = choice.copies(len(coupling)).clamp_min(1)
    lost = sum(
        (_lost(coupling, a)[b] / copies[b] ** 2).sum()
        for a, b in zip(choice.first, choice.second, strict=True)
    )
    return float(lost / coupling.sum().clamp_min(torch.finfo(coupling.dtype).tiny))


def _sorted(channels: Tensor) -> Tensor:
    return channels.sort().values


def _runs(channels: int, width: int, N: int) -> tuple[Tensor, ...]:
    starts = [round(n * (channels - width) / max(1, N - 1)) for n in range(N)]
    return tuple(torch.arange(start, start + width) for start in starts)


def _lost(coupling: Tensor, first: Tensor) -> Tensor:
    """Return the loss of each of conv2's channels when only `first` feeds it, (C2,)."""
    kept = torch.zeros(coupling.shape[1], dtype=torch.bool)
    kept[first] = True
    return coupling[:, ~kept].sum(1)


def _choose_first(coupling: Tensor, second: tuple[Tensor, ...], width: int) -> tuple[Tensor, ...]:
    return tuple(_sorted(coupling[b].sum(0).topk(width).indices) for b in second)


def _choose_second(coupling: Tensor, first: tuple[Tensor, ...], width: int) -> tuple[Tensor, ...]:
    """Give every channel to the sub-block that loses least of it, then fill up with copies."""
    lost = torch.stack([_lost(coupling, a) for a in first], 1)
    return _fill(lost, width)


def _fill(lost: Tensor, width: int) -> tuple[Tensor, ...]:
    """Assign rows of `lost` (C2, N) to N sets of `width`: each row once, then the best copies."""
    channels, N = lost.shape
    held = torch.zeros(channels, N, dtype=torch.bool)
    room = [width] * N
    order = lost.argsort(1)
    regret = lost.gather(1, order[:, -1:]) - lost.gather(1, order[:, :1])
    waiting = regret.squeeze(1).argsort(descending=True)
    # Rank by rank: who has most to lose chooses first; who finds no room takes the next best.
    for rank in range(N):
        wanted = order[waiting, rank]
        refused = torch.zeros(len(waiting), dtype=torch.bool)
        for n in range(N):
            asking = (wanted == n).nonzero().squeeze(1)
            held[waiting[asking[: room[n]]], n] = True
            refused[asking[room[n] :]] = True
            room[n] -= min(room[n], len(asking))
        waiting = waiting[refused]
    # A copy halves a channel's weight in both places: it helps most where much is lost.
    gain = (lost * held).sum(1, keepdim=True) - lost / 4
    gain = gain.masked_fill(held, -torch.inf)
    for n in range(N):
        if room[n]:
            held[gain[:, n].topk(room[n]).indices, n] = True
    return tuple(held[:, n].nonzero().squeeze(1) for n in range(N))


def _by_similarity(coupling: Tensor, width: int, N: int) -> tuple[Tensor, ...]:
    """Group conv2's channels by what feeds them: a first guess from the leading directions."""
    profile = coupling / coupling.sum(1, keepdim=True).clamp_min(torch.finfo(coupling.dtype).tiny)
    profile = profile - profile.mean(0)
    centres = [int(profile.norm(dim=1).argmax())]
    for _ in range(1, N):
        distances = torch.cdist(profile, profile[centres]).amin(1)
        centres.append(int(distances.argmax()))
    return _fill(torch.cdist(profile, profile[centres]), width)
