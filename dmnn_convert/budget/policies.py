"""Policies over one network's paths (static networks, levels, cascades, gates) at budgets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..evaluation import evaluate
from ..foreign import images_and_labels
from ..graph import copied
from .cascade import Cascade
from .fit import AllAnswers, ask, best_choice, candidates
from .freeze import freeze
from .level import table_of
from .offset import set_budget
from .statistics import trained_levels
from .thresholds import figures_at

POLICIES = ("static", "level", "cascade", "gates")


class Point(NamedTuple):
    """One policy at one budget.

    Attributes:
        policy: one of `POLICIES`.
        name: which level or levels, or the budget of gates.
        flops_ratio: mean FLOPs of an image, of all runs, over the dense network's.
        top1: percent.
        network: the network that answers; the next point may change it.
        target: the FLOPs ratio that it was fitted to, if any.
    """

    policy: str
    name: str
    flops_ratio: float
    top1: float
    network: nn.Module
    target: float | None = None


class Refusal(NamedTuple):
    """A budget that a policy cannot meet, and why."""

    policy: str
    reason: str


def points(
    model: nn.Module,
    loader: Iterable[Any],
    policies: Sequence[str],
    static: nn.Module | Sequence[nn.Module] | None = None,
    held_out: Iterable[Any] | None = None,
    flops_ratios: Sequence[float] | None = None,
    *,
    progress: bool = False,
) -> Iterator[Point | Refusal]:
    """Yield the points of each policy; see `curve`."""
    table = table_of(model, "curve")
    unknown = [policy for policy in policies if policy not in POLICIES]
    if unknown or not policies:
        raise ArgumentError(f"curve(policies={tuple(policies)}): choose among {POLICIES}.")
    loader = list(loader) if isinstance(loader, Iterator) else loader
    held_out = list(held_out) if isinstance(held_out, Iterator) else held_out
    levels = trained_levels(model)
    networks = [freeze(model, path) for path in levels.values()]
    alone = [static] if isinstance(static, nn.Module) else list(static or ())
    asked = ask([*networks, *alone], loader, "margin", table.input_size, progress=progress)
    dense = float(table.dense_total)
    if held_out is None:
        chosen, asked = asked.about(slice(0, None, 2)), asked.about(slice(1, None, 2))
    else:
        chosen = ask(networks, held_out, "margin", table.input_size, progress=progress)
    if not len(chosen.labels) or not len(asked.labels):
        raise ArgumentError("curve: the loader gave one image alone; give held-out images.")
    for i, network in enumerate(alone, len(networks)):
        yield Point("static", type(network).__name__, asked.macs[i] / dense, asked.top1(i), network)
    if "level" in policies:
        for i, (name, network) in enumerate(zip(levels, networks, strict=True)):
            yield Point("level", name, asked.macs[i] / dense, asked.top1(i), network)
    least = min(asked.macs[: len(networks)]) / dense
    budgets = flops_ratios or [b / 10 for b in range(math.ceil(10 * least), 11)]
    if "cascade" in policies and len(networks) > 1:
        few = chosen.of(range(len(networks)))
        yield from _cascades(few, asked, networks, list(levels), dense, budgets)
    if "gates" in policies:
        yield from _gates(model, loader, held_out, budgets, progress=progress)


def _cascades(
    chosen: AllAnswers,
    asked: AllAnswers,
    networks: Sequence[nn.Module],
    names: Sequence[str],
    dense: float,
    budgets: Sequence[float],
) -> Iterator[Point | Refusal]:
    """Yield the best pair or triple at each budget: chosen on some images, measured on others."""
    before, among = None, candidates(chosen, fixed=False)
    for budget in budgets:
        best = best_choice(among, dense * budget)
        if best is None:
            least = min(chosen.macs) / dense
            yield Refusal("cascade", f"{budget:g}: the cheapest level alone takes {least:.3f}")
            continue
        if best == before:  # a larger budget gains nothing
            continue
        before, (subset, mean, choice) = best, best
        found = figures_at(asked.answers(subset, mean=mean), choice.thresholds)
        cascade = Cascade([networks[i] for i in subset], choice.thresholds, mean=mean)
        name = " → ".join(names[i] for i in subset)
        yield Point("cascade", name, found.macs / dense, found.top1, cascade, budget)


def _gates(
    model: nn.Module,
    loader: Iterable[Any],
    held_out: Iterable[Any] | None,
    budgets: Sequence[float],
    *,
    progress: bool,
) -> Iterator[Point | Refusal]:
    """Yield the model's own gates at each budget."""
    own, table = copied(model).eval(), table_of(model, "curve")
    for_choice = _Half(loader, 0) if held_out is None else held_out
    to_measure = _Half(loader, 1) if held_out is None else loader
    for budget in budgets:
        try:
            offset = set_budget(own, for_choice, budget, progress=progress)
        except Shuffled:
            raise
        except ArgumentError as error:
            yield Refusal("gates", str(error).removeprefix("set_budget(").replace(")", "", 1))
            continue
        found = evaluate(own, table, to_measure, progress=progress)
        ratio = found.network_flops_ratio.mean
        yield Point("gates", f"{budget:g} ({offset:+.2f})", ratio, found.top1, own, budget)


class Shuffled(ArgumentError):
    """A loader yields its images in another order each time."""


class _Half:
    """Every second image of a loader, which must yield the same images each time."""

    def __init__(self, loader: Iterable[Any], first: int) -> None:
        self.loader, self.first = loader, first
        self.sums: Tensor | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        seen, sums = 0, [torch.zeros(0)]
        for batch in self.loader:
            images, own = images_and_labels(batch, "curve")
            sums.append(images.flatten(1).float().sum(1).cpu())
            rows = torch.arange((self.first + seen) % 2, len(own), 2)
            seen += len(own)
            if len(rows):
                yield images[rows], own[rows]
        now = torch.cat(sums)
        if self.sums is not None and not now.equal(self.sums):
            raise Shuffled(
                "curve: the loader gives its images in another order each time, or changes them, "
                "so none can be kept apart for the choice of budgets. Give one that does not "
                "shuffle or augment, or separate images, held_out=."
            )
        self.sums = now
