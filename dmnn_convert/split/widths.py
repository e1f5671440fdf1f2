"""Matched widths, with which N narrower bottlenecks have as many parameters as the block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..channels import conv_of, rule
from ..find import Branch
from ..graph import Role, TracedModel
from .program import as_module

TOLERANCE = 0.01
"""Largest relative change of the whole model's parameters that coarse widths may cause."""


class BottleneckShape(NamedTuple):
    """The shape of a dense bottleneck.

    Attributes:
        c_in, c1, c2, c_out: channels from the input over each convolution to the output.
        kernels: number of positions of each kernel.
        per_channel: parameters of biases and norms, for each channel after each convolution.
    """

    c_in: int
    c1: int
    c2: int
    c_out: int
    kernels: tuple[int, ...] = (1, 9, 1)
    per_channel: tuple[int, ...] = (2, 2, 2)

    def parameters(self, w1: int, w2: int, N: int = 1) -> int:
        """Return the parameters of N bottlenecks of widths w1, w2 (eq. 1 for N = 1, else eq. 2).

        The paper counts convolutions only; the norms, copied N times, count here too.
        """
        k1, k2, k3 = self.kernels
        convolutions = k1 * self.c_in * w1 + k2 * w1 * w2 + k3 * w2 * self.c_out
        p1, p2, p3 = self.per_channel
        return N * (convolutions + p1 * w1 + p2 * w2 + p3 * self.c_out)


def matched_widths(
    blocks: Sequence[BottleneckShape], N: Sequence[int], parameters: int
) -> list[tuple[int, int]]:
    """Choose (Ĉ1, Ĉ2) for each block, to become N[i] ones, so that eq. 2 comes close to eq. 1.

    Blocks of equal N, inner and outer widths (a stage) get equal widths, in steps of 1/32 of the
    original, as in the paper's networks. If that misses the model's number of `parameters` by more
    than 1 %, the steps are single channels.
    """
    coarse = _widths(blocks, N, steps=32)
    error = sum(
        b.parameters(*w, n) - b.parameters(b.c1, b.c2)
        for b, n, w in zip(blocks, N, coarse, strict=True)
    )
    return coarse if abs(error) <= TOLERANCE * parameters else _widths(blocks, N, steps=None)


def _widths(
    blocks: Sequence[BottleneckShape], N: Sequence[int], steps: int | None
) -> list[tuple[int, int]]:
    keys = [(n, block[1:]) for block, n in zip(blocks, N, strict=True)]
    stages: dict[tuple[int, tuple[object, ...]], list[BottleneckShape]] = {}
    for block, key in zip(blocks, keys, strict=True):
        stages.setdefault(key, []).append(block)
    chosen = {key: _stage_widths(stage, key[0], steps) for key, stage in stages.items()}
    return [chosen[key] for key in keys]


def _stage_widths(stage: Sequence[BottleneckShape], N: int, steps: int | None) -> tuple[int, int]:
    first = stage[0]
    step = max(1, first.c1 // steps) if steps else 1
    target = sum(b.parameters(b.c1, b.c2) for b in stage)

    def error(w1: int) -> int:
        return abs(sum(b.parameters(w1, _second(first, w1), N) for b in stage) - target)

    w1 = min(range(step, first.c1 + 1, step), key=error)
    return w1, _second(first, w1)


def _second(block: BottleneckShape, w1: int) -> int:
    return max(1, round(w1 * block.c2 / block.c1))


def bottleneck_shape(traced: TracedModel, branch: Branch) -> BottleneckShape:
    """Return the shape of a bottleneck's three convolutions."""
    nodes = (*branch.trunk, *branch.body)
    convs = [conv for n in nodes if (conv := conv_of(traced, n))]
    first, second, third = convs
    return BottleneckShape(
        first.in_channels,
        first.out_channels,
        second.out_channels,
        third.out_channels,
        kernels=tuple(conv.weight[0, 0].numel() for conv in convs),
        per_channel=_per_channel(traced, branch),
    )


def _per_channel(traced: TracedModel, branch: Branch) -> tuple[int, ...]:
    """Return the number of parameters per channel in the biases and norms after each conv."""
    counts: list[int] = []
    for node in (*branch.trunk, *branch.body):
        conv, module = conv_of(traced, node), as_module(traced, node)
        if conv is not None:
            counts.append(int(conv.bias is not None))
        elif module is not None and counts and rule(traced, node).role is Role.NORM:
            counts[-1] += sum(1 for _ in module.parameters())
    return tuple(counts)
