"""The policy that is right most often at a budget, chosen on held-out images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..config import BUDGET_POLICIES
from ..errors import ArgumentError
from ..evaluation import evaluate
from ..graph import copied
from .cascade import Cascade
from .fit import ask
from .freeze import freeze
from .level import Level, path_ratio, table_of
from .offset import set_budget
from .statistics import path_of, trained_levels
from .thresholds import figures_at


class ChosenPolicy(NamedTuple):
    """A policy at a budget, with its figures on the images that it was chosen on.

    Attributes:
        policy: "cascade", "level" or "gates".
        name: of the level or levels; the offset of gates.
        flops_ratio: mean FLOPs of an image, of all runs, over the dense network's.
        top1: percent.
        network: a cascade, a frozen network, or a copy of the model with the budget set.
        level: the level that the network was frozen from, if any.
    """

    policy: str
    name: str
    flops_ratio: float
    top1: float
    network: nn.Module
    level: Level | Tensor | None = None


def choose(
    model: nn.Module,
    held_out: Iterable[Any],
    flops_ratio: float,
    policy: str = "auto",
    *,
    progress: bool = False,
) -> tuple[ChosenPolicy, tuple[str, ...]]:
    """Return the best policy at a budget, and notes on the others.

    If a cascade is not better than the best level within the budget, that level is chosen.

    Args:
        model: a converted model; it stays as it is.
        held_out: yields images (B, C, H, W) and classes (B,), not trained on.
        flops_ratio: mean FLOPs of an image over the dense network's.
        policy: "cascade", "level", "gates", or "auto" for the best of them.
        progress: whether to show bars.

    Raises:
        ArgumentError: if none can meet the budget, with each one's floor.
    """
    if policy not in BUDGET_POLICIES:
        raise ArgumentError(
            f"choose(policy={policy!r}): choose one of {', '.join(BUDGET_POLICIES)}."
        )
    if not 0 < flops_ratio < math.inf:
        raise ArgumentError(f"choose(flops_ratio={flops_ratio!r}): give a number above 0.")
    held_out = list(held_out) if isinstance(held_out, Iterator) else held_out
    found: list[ChosenPolicy] = []
    notes: list[str] = []
    wanted = {"auto": ("level", "cascade", "gates"), "cascade": ("level", "cascade")}
    for name in wanted.get(policy, (policy,)):
        try:
            found.append(_MAKERS[name](model, held_out, flops_ratio, progress))
        except ArgumentError as error:
            notes.append(f"{name} left out: {error}")
    if not found or policy not in ("auto", *(one.policy for one in found)):
        raise ArgumentError("; ".join(notes))
    best = max(found, key=lambda one: one.top1)  # of equally good ones the first, a level
    level, cascade = (next((c for c in found if c.policy == p), None) for p in ("level", "cascade"))
    if level is not None and cascade is not None and cascade.top1 <= level.top1:
        left = "the level is kept" if best is level else "it is left out"
        notes.append(
            f"The cascade {cascade.name} has {cascade.top1:.2f} % at {cascade.flops_ratio:.3f} of "
            f"the FLOPs, no more than level {level.name} with {level.top1:.2f} % at "
            f"{level.flops_ratio:.3f}: {left}."
        )
    return best, tuple(notes)


def measured(chosen: ChosenPolicy, model: nn.Module, loader: Iterable[Any]) -> tuple[float, float]:
    """Return the top-1 accuracy in percent and the FLOPs ratio of a chosen policy, on a loader.

    Args:
        chosen: by `choose`.
        model: the model that it was chosen for.
        loader: yields images (B, C, H, W) and classes (B,).
    """
    table, network = table_of(model, "measured"), chosen.network
    if chosen.policy == "gates":
        found = evaluate(network, table, loader)
        return found.top1, found.network_flops_ratio.mean
    if isinstance(network, Cascade):
        asked = ask(
            [*network.networks], loader, network.confidence, table.input_size, progress=False
        )
        answers = asked.answers(range(len(network.networks)), mean=network.mean)
        choice = figures_at(answers, network.thresholds.tolist())
        return choice.top1, choice.macs / table.dense_total
    asked = ask([network], loader, "margin", table.input_size, progress=False)
    return asked.top1(0), asked.macs[0] / table.dense_total


def _level(
    model: nn.Module, held_out: Iterable[Any], target: float, progress: bool
) -> ChosenPolicy:
    table = table_of(model, "choose")
    ratios = {
        name: path_ratio(table, path_of(model, level))
        for name, level in trained_levels(model).items()
    }
    within = {n: level for n, level in trained_levels(model).items() if ratios[n] <= target}
    if not within:
        raise ArgumentError(
            f"the lowest level takes {min(ratios.values()):.3f} of the dense network's FLOPs, more "
            f"than {target:g}."
        )
    networks = {name: freeze(model, level) for name, level in within.items()}
    asked = ask([*networks.values()], held_out, "margin", table.input_size, progress=progress)
    top1 = {name: asked.top1(i) for i, name in enumerate(networks)}
    best = max(networks, key=lambda name: top1[name])
    return ChosenPolicy("level", best, ratios[best], top1[best], networks[best], within[best])


def _cascade(
    model: nn.Module, held_out: Iterable[Any], target: float, progress: bool
) -> ChosenPolicy:
    cascade = Cascade.fit(model, held_out, levels=None, flops_ratio=target, progress=progress)
    fitted, names = cascade.fitted, trained_levels(model)
    if fitted is None or fitted.levels is None:
        raise ArgumentError("there are no levels to make a cascade of.")
    shown = [
        next(name for name, other in names.items() if path_of(model, other).equal(path))
        for path in (path_of(model, level) for level in fitted.levels)
    ]
    return ChosenPolicy("cascade", " → ".join(shown), fitted.flops_ratio, fitted.top1, cascade)


def _gates(
    model: nn.Module, held_out: Iterable[Any], target: float, progress: bool
) -> ChosenPolicy:
    own = copied(model).eval()
    offset = set_budget(own, held_out, target, progress=progress)
    found = evaluate(own, table_of(model, "choose"), held_out, progress=progress)
    ratio = found.network_flops_ratio.mean
    return ChosenPolicy("gates", f"offset {offset:+.3f}", ratio, found.top1, own)


_MAKERS = {"level": _level, "cascade": _cascade, "gates": _gates}
