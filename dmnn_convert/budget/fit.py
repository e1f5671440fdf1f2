"""The fit of a cascade: the most accurate levels and thresholds within a budget."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import DynamizeConfig
from ..distributed import gathered
from ..dryrun import measure
from ..errors import ArgumentError
from ..foreign import images_and_labels
from ..nn import GateController, conversion_within, in_evaluation
from ..progress import tracked
from ..refit import device_of
from .confidence import Confidence, answer_of, checked_confidence, confidence_in
from .freeze import freeze
from .level import Level
from .statistics import trained_levels
from .thresholds import Answers, ThresholdFigures, Tried, beyond_chance, right_at, tried


class Fitted(NamedTuple):
    """A fitted cascade, with its figures on the held-out images that it was fitted on.

    Attributes:
        networks: the chosen ones, from the cheapest to the largest.
        thresholds: one less than networks.
        mean: whether the probabilities of all networks asked are averaged.
        levels: of the model that the networks were frozen from; None for networks of the user's.
        top1: percent.
        flops_ratio: mean over the images, of all runs, over the dense network's FLOPs.
        shares: of the images, answered by each network.
        conversion: of the model that the networks were frozen from; None for the user's own.
    """

    networks: tuple[nn.Module, ...]
    thresholds: tuple[float, ...]
    mean: bool
    levels: tuple[Level | Tensor, ...] | None
    top1: float
    flops_ratio: float
    shares: tuple[float, ...]
    conversion: DynamizeConfig | None = None


def fit_cascade(
    model: nn.Module | Sequence[nn.Module],
    loader: Iterable[Any],
    levels: Sequence[Level | Tensor] | None,
    flops_ratio: float,
    confidence: str | Confidence,
    *,
    progress: bool = False,
) -> Fitted:
    """Choose thresholds, and levels if none are given; see `Cascade.fit`."""
    checked_confidence(confidence)
    if not isinstance(flops_ratio, int | float) or not flops_ratio > 0:
        raise ArgumentError(f"Cascade.fit(flops_ratio={flops_ratio!r}): give a number above 0.")
    if isinstance(model, nn.Module):
        own = _levels(model, levels)
        networks = [freeze(model, level) for level in own]
    else:
        own, networks = None, list(model)
        _check_networks(networks)
    conversion = conversion_within(model) if isinstance(model, nn.Module) else None
    size = None if conversion is None else conversion.table.input_size
    asked = ask(networks, loader, confidence, size, progress=progress)
    # Of the source, or of the largest of a list of networks.
    dense = float(max(asked.macs) if conversion is None else conversion.table.dense_total)
    if own is None and asked.macs != sorted(asked.macs):
        raise ArgumentError(
            f"Cascade.fit: the networks take {asked.macs} MACs; give them from the cheapest to the "
            "largest."
        )
    among = candidates(asked, fixed=own is None or levels is not None)
    chosen = best_choice(among, dense * flops_ratio)
    if chosen is None:
        floor = min(asked.macs) / dense
        raise ArgumentError(
            f"Cascade.fit(flops_ratio={flops_ratio}): the cheapest network alone takes {floor:.3f} "
            "of the dense network's FLOPs; give a larger ratio, or a lower level."
        )
    subset, mean, choice = chosen
    return Fitted(
        tuple(networks[i] for i in subset),
        choice.thresholds,
        mean,
        None if own is None else tuple(own[i] for i in subset),
        choice.top1,
        choice.macs / dense,
        choice.shares,
        None if conversion is None else conversion.config,
    )


def _levels(model: nn.Module, levels: Sequence[Level | Tensor] | None) -> list[Level | Tensor]:
    if levels is None:
        return list(trained_levels(model).values())
    if not isinstance(levels, Sequence) or len(levels) < 2:
        raise ArgumentError(f"Cascade.fit(levels={levels!r}): give two levels or more, or None.")
    return list(levels)


def _check_networks(networks: Sequence[object]) -> None:
    kinds = [type(network).__name__ for network in networks]
    if len(networks) < 2 or not all(isinstance(network, nn.Module) for network in networks):
        raise ArgumentError(
            f"Cascade.fit: got {kinds}; give a converted model, or a list of two networks or more, "
            "from the cheapest to the largest."
        )
    for network in networks:
        if any(isinstance(m, GateController) for m in network.modules()):  # type: ignore[attr-defined]
            raise ArgumentError(
                "Cascade.fit: one of the networks has gates; give freeze(network, path), or the "
                "converted model alone with levels=."
            )


class AllAnswers(NamedTuple):
    """Answers of all networks to all held-out images.

    Attributes:
        logits: of each network, (M, K).
        confidence: of each network, (M,).
        labels: (M,).
        macs: of each network.
    """

    logits: list[Tensor]
    confidence: list[Tensor]
    labels: Tensor
    macs: list[int]

    def about(self, images: slice | Tensor) -> AllAnswers:
        """Return the answers to some of the images."""
        logits, sure = ([t[images] for t in each] for each in (self.logits, self.confidence))
        return AllAnswers(logits, sure, self.labels[images], self.macs)

    def of(self, networks: Sequence[int]) -> AllAnswers:
        """Return the answers of some of the networks."""
        logits, sure = ([t[i] for i in networks] for t in (self.logits, self.confidence))
        return AllAnswers(logits, sure, self.labels, [self.macs[i] for i in networks])

    def top1(self, network: int) -> float:
        """Return the share of right answers of a network, in percent."""
        return 100 * float((self.logits[network].argmax(1) == self.labels).double().mean())

    def answers(self, subset: Sequence[int], *, mean: bool) -> list[Answers]:
        """Return a cascade's answers: the last network's, or the mean of all that were asked."""
        total: Tensor | None = None
        answers = []
        for i in subset:
            p = F.softmax(self.logits[i], -1)
            total = p if total is None or not mean else total + p
            right = (total.argmax(1) == self.labels).float()
            answers.append(Answers(self.confidence[i], right, float(self.macs[i])))
        return answers


def ask(
    networks: Sequence[nn.Module],
    loader: Iterable[Any],
    confidence: str | Confidence,
    counted: Sequence[int] | None = None,
    *,
    progress: bool,
) -> AllAnswers:
    """Ask every network about every image of all processes.

    Args:
        networks: without gates.
        loader: yields images (B, C, H, W) and classes (B,).
        confidence: how sure an answer is.
        counted: size of an image (C, H, W) that MACs are counted for, that of a table that they are
            compared with; None for that of the images.
        progress: whether to show a bar.
    """
    at = device_of(networks[0])
    logits: list[list[Tensor]] = [[] for _ in networks]
    sure: list[list[Tensor]] = [[] for _ in networks]
    labels: list[Tensor] = []
    size: tuple[int, ...] | None = None
    for batch in tracked(loader, "Cascade.fit", shown=progress):
        images, own = images_and_labels(batch, "Cascade.fit")
        size = tuple(images.shape[1:]) if size is None else size
        labels.append(own.cpu())
        for i, network in enumerate(networks):
            with in_evaluation(network):
                answer = answer_of(network(images.to(at, copy=True)), confidence)
            if not isinstance(answer, Tensor) or answer.dim() != 2:
                raise ArgumentError(
                    f"Cascade.fit: {type(network).__name__} returns {type(answer).__name__}, not "
                    "logits (B, classes), by which answers are right or wrong; wrap it, or choose "
                    "thresholds yourself: Cascade(networks, thresholds, confidence=...)."
                )
            sure[i].append(confidence_in(answer, confidence, len(images)).cpu())
            logits[i].append(answer.float().cpu())
    if size is None:
        raise ArgumentError("Cascade.fit: the loader gave no images; give held-out images.")
    _check_classes(logits, labels)
    none = torch.zeros(0)
    return AllAnswers(
        [gathered(parts, none.view(0, parts[0].shape[1]), at) for parts in logits],
        [gathered(parts, none, at) for parts in sure],
        gathered(labels, none.long(), at),
        [measure(network, tuple(counted or size)).macs[""] for network in networks],
    )


def _check_classes(logits: Sequence[Sequence[Tensor]], labels: Sequence[Tensor]) -> None:
    widths = [parts[0].shape[1] for parts in logits]
    least, largest = (int(end) for end in torch.cat(list(labels)).aminmax())
    if len(set(widths)) > 1 or least < 0 or largest >= widths[0]:
        raise ArgumentError(
            f"Cascade.fit: the networks return {widths} logits, the labels go from {least} to "
            f"{largest}; give networks and images of the same classes."
        )


class Candidate(NamedTuple):
    """Some of the networks, as a cascade.

    Attributes:
        networks: their indices.
        mean: whether to average the probabilities of all that were asked.
        tried: thresholds, with their figures.
    """

    networks: tuple[int, ...]
    mean: bool
    tried: Tried


def candidates(asked: AllAnswers, *, fixed: bool) -> list[Candidate]:
    """Return all networks as a cascade, or every pair and triple of them if not `fixed`."""
    every = range(len(asked.macs))
    subsets = [tuple(every)] if fixed else [*_pairs_and_triples(every)]
    return [
        Candidate(subset, mean, tried(asked.answers(subset, mean=mean)))
        for subset, mean in itertools.product(subsets, (False, True))
    ]


def best_choice(
    among: Sequence[Candidate], macs: float
) -> tuple[tuple[int, ...], bool, ThresholdFigures] | None:
    """Return networks, whether to average, and thresholds for a budget.

    The most accurate pair is taken. A triple has to be better than it beyond chance: there are so
    many that the best of them always looks better on the images that it was chosen on. Answers are
    averaged if that is more accurate for the networks that were chosen.
    """
    found = [(one, one.tried.best(macs)) for one in among]
    choices = [_Choice(one, figures) for one, figures in found if figures is not None]
    if not choices:
        return None
    alone = [choice for choice in choices if not choice.candidate.mean]
    shortest = min(len(choice.candidate.networks) for choice in alone)
    few = [choice for choice in alone if len(choice.candidate.networks) == shortest]
    best, any_of_them = (max(some, key=_Choice.rank) for some in (few, alone))
    longer = len(alone) - len(few)
    if longer and beyond_chance(any_of_them.right(), best.right(), among=longer):
        best = any_of_them
    same = [c for c in choices if c.candidate.networks == best.candidate.networks]
    best = max(same, key=lambda choice: choice.figures.top1)  # the first, which averages nothing
    return best.candidate.networks, best.candidate.mean, best.figures


class _Choice(NamedTuple):
    """A candidate at a budget."""

    candidate: Candidate
    figures: ThresholdFigures

    def rank(self) -> tuple[float, float]:
        """Return what is larger for a better choice."""
        return self.figures.top1, -self.figures.macs

    def right(self) -> Tensor:
        """Return for each image, (M,), 1 where the answer is right and 0 elsewhere."""
        return right_at(self.candidate.tried.answers, self.figures.thresholds)


def _pairs_and_triples(every: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for length in (2, 3):
        yield from itertools.combinations(every, length)
