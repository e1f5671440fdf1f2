"""Thresholds of a cascade, chosen on held-out images to meet a budget of FLOPs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 40
"""Shares of escalated images that are tried for each of several thresholds."""


class Answers(NamedTuple):
    """The answers of one network to the held-out images.

    Attributes:
        confidence: (M,), confidence in each answer.
        right: (M,), 1 where the answer is right, 0 elsewhere.
        macs: cost of an answer.
    """

    confidence: Tensor
    right: Tensor
    macs: float


class ThresholdFigures(NamedTuple):
    """Thresholds, with their figures on the images that they were chosen on.

    Attributes:
        thresholds: an answer of less confidence goes to the next network; one for each network but
            the last.
        top1: percent.
        macs: mean over the images, all runs counted.
        shares: of the images, answered by each network.
    """

    thresholds: tuple[float, ...]
    top1: float
    macs: float
    shares: tuple[float, ...]


class Tried(NamedTuple):
    """Thresholds of a cascade that were tried, in every combination.

    Attributes:
        answers: of each network, from the cheapest to the largest.
        grids: thresholds of each network but the last.
        right: right answers, an axis for each grid.
        macs: mean over the images, of the same shape.
    """

    answers: Sequence[Answers]
    grids: Sequence[Tensor]
    right: Tensor
    macs: Tensor

    def best(self, macs: float) -> ThresholdFigures | None:
        """Return the thresholds of the highest accuracy whose mean cost is at most `macs`.

        Of equally good ones, the cheapest are taken. None if even the first network is too
        expensive.
        """
        if self.answers[0].macs > macs:
            return None
        right = self.right.masked_fill(self.macs > macs * (1 + 1e-9), -1)
        cheapest = self.macs.masked_fill(right < right.max(), math.inf).argmin()
        places = torch.unravel_index(cheapest, right.shape)
        thresholds = [float(grid[place]) for grid, place in zip(self.grids, places, strict=True)]
        return figures_at(self.answers, thresholds)


def tried(answers: Sequence[Answers]) -> Tried:
    """Return the figures of all thresholds, for any budget.

    Args:
        answers: of each network, from the cheapest to the largest.
    """
    grids = [_grid(network, len(answers)) for network in answers[:-1]]
    return Tried(answers, grids, *_figures(answers, grids))


def best_thresholds(answers: Sequence[Answers], macs: float) -> ThresholdFigures | None:
    """Return the best thresholds at one budget; see `Tried.best`."""
    return tried(answers).best(macs)


def _grid(network: Answers, networks: int) -> Tensor:
    """Return thresholds to try: every one of a pair, a grid of more."""
    levels = network.confidence[network.confidence.isfinite()].unique()
    if not len(levels):
        return torch.zeros(1)
    # Between two answers, so that another engine's rounding moves no answer across.
    ends = torch.cat([levels[:1] - 1, (levels[1:] + levels[:-1]) / 2, levels[-1:] + 1])
    most = STEPS if networks > 2 else 500
    if len(ends) > most:
        ends = ends[torch.linspace(0, len(ends) - 1, most).round().long()]
    return ends


def _figures(answers: Sequence[Answers], grids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return right answers, and MACs per image, of all combinations of thresholds."""
    images = len(answers[0].right)
    reached = torch.ones(1, images)  # a row for every combination so far: the images still unsure
    right, cost = torch.zeros(1), torch.full((1,), answers[0].macs, dtype=torch.float64)
    for i, grid in enumerate(grids):
        again = (answers[i].confidence < grid[:, None]).float()
        settled = reached @ ((1 - again) * answers[i].right).T
        asked = (reached @ again.T).double() / images
        right = (right[:, None] + settled).flatten()
        cost = (cost[:, None] + asked * answers[i + 1].macs).flatten()
        if i + 1 < len(grids):
            reached = (reached[:, None] * again).flatten(0, 1)
        else:
            right = right + (reached @ (again * answers[-1].right).T).flatten()
    shape = [len(grid) for grid in grids]
    return right.view(shape), cost.view(shape)


def figures_at(answers: Sequence[Answers], thresholds: Sequence[float]) -> ThresholdFigures:
    """Return the figures of thresholds on the images of these answers."""
    images = len(answers[0].right)
    asking = torch.ones(images, dtype=torch.bool)
    right, macs, shares = 0.0, 0.0, []
    for i, network in enumerate(answers):
        macs += network.macs * int(asking.sum())
        last = i == len(answers) - 1
        again = torch.zeros_like(asking) if last else network.confidence < thresholds[i]
        answered = asking & ~again
        right += float(network.right[answered].sum())
        shares.append(int(answered.sum()) / images)
        asking = asking & again
    return ThresholdFigures(tuple(thresholds), 100 * right / images, macs / images, tuple(shares))
