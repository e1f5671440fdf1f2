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
        """Return the thresholds that make the most of a mean cost of `macs`.

        They spend it: none can be raised any further. Of several such, these are the most accurate
        ones, of equally good ones the cheapest. Thresholds that leave a part of the budget are
        taken only if they are better beyond chance, where larger networks know less: the best of
        hundreds always looks somewhat better. None if even the first network is too expensive.
        """
        if self.answers[0].macs > macs:
            return None
        affordable = self.macs <= macs * (1 + 1e-9)
        spent = affordable.clone()
        for dim in range(affordable.dim()):
            raised = affordable.narrow(dim, 1, affordable.shape[dim] - 1)
            spent.narrow(dim, 0, len(self.grids[dim]) - 1).logical_and_(~raised)
        full, any_of_them = self.most_accurate(spent), self.most_accurate(affordable)
        ours, theirs = (right_at(self.answers, at) for at in (any_of_them, full))
        better = beyond_chance(ours, theirs, among=int(affordable.sum()))
        return figures_at(self.answers, any_of_them if better else full)

    def most_accurate(self, among: Tensor) -> list[float]:
        """Return the most accurate thresholds of some, of equally good ones the cheapest.

        Args:
            among: booleans, of the shape of `right`; one at least is true.
        """
        right = self.right.masked_fill(~among, -1)
        cheapest = self.macs.masked_fill(right < right.max(), math.inf).argmin()
        places = torch.unravel_index(cheapest, right.shape)
        return [float(grid[place]) for grid, place in zip(self.grids, places, strict=True)]


def tried(answers: Sequence[Answers]) -> Tried:
    """Return the figures of all thresholds, for any budget.

    Args:
        answers: of each network, from the cheapest to the largest.
    """
    grids = [_grid(network, len(answers)) for network in answers[:-1]]
    return Tried(answers, grids, *_figures(answers, grids))


def best_thresholds(answers: Sequence[Answers], macs: float) -> ThresholdFigures | None:
    """Return the thresholds that make the most of one budget; see `Tried.best`."""
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
    exits = _exits(answers, thresholds)
    top1 = 100 * float(_right(answers, exits).double().mean())
    macs = sum(n.macs * float((exits >= i).double().mean()) for i, n in enumerate(answers))
    shares = (torch.bincount(exits, minlength=len(answers)).double() / len(exits)).tolist()
    return ThresholdFigures(tuple(thresholds), top1, macs, tuple(shares))


def right_at(answers: Sequence[Answers], thresholds: Sequence[float]) -> Tensor:
    """Return for each image, (M,), 1 where a cascade's answer is right and 0 elsewhere."""
    return _right(answers, _exits(answers, thresholds))


def _right(answers: Sequence[Answers], exits: Tensor) -> Tensor:
    return torch.stack([network.right for network in answers]).gather(0, exits[None])[0]


def _exits(answers: Sequence[Answers], thresholds: Sequence[float]) -> Tensor:
    """Return for each image, (M,), the number of the network that answers it."""
    asking = torch.ones(len(answers[0].right), dtype=torch.bool)
    exits = torch.zeros(len(asking), dtype=torch.long)
    for number, (network, threshold) in enumerate(zip(answers, thresholds, strict=False), 1):
        asking = asking & (network.confidence < threshold)
        exits[asking] = number
    return exits


def beyond_chance(right: Tensor, other: Tensor, among: int) -> bool:
    """Return whether the best answers of many are better than others, and not by chance alone.

    Of m alternatives that are no better, the best looks better by about √(2 ln m) standard errors:
    the expected maximum of m normal variables.

    Args:
        right: (M,), 1 where an answer to an image is right, 0 elsewhere.
        other: the same of the other answers.
        among: of how many alternatives the first are the best.
    """
    gain = (right - other).double()
    error = float(gain.std(correction=0)) / math.sqrt(len(gain))
    return float(gain.mean()) > math.sqrt(2 * math.log(among)) * error
