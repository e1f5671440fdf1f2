"""A matched-width split by chance: the baseline for choosing channels by energy."""

from __future__ import annotations

import torch

from dmnn_convert.split.select import ChannelChoice, index_choice


def random_choice(
    c1: int, c2: int, widths: tuple[int, int], N: int, generator: torch.Generator
) -> ChannelChoice:
    """Keep random channels, every one of conv2's at least once."""
    first = [torch.randperm(c1, generator=generator)[: widths[0]] for _ in range(N)]
    order = torch.randperm(c2, generator=generator)
    second = (order[run] for run in index_choice(c1, c2, widths, N).second)
    return ChannelChoice(
        tuple(s.sort().values for s in first), tuple(s.sort().values for s in second)
    )
