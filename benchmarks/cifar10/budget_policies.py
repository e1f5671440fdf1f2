"""The policies of finished trainings, at several budgets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from budget_runs import Run, folder_of, recipe_of
from slices import FACTORIES, dense_macs
from torch import nn

from dmnn_convert import freeze, load
from dmnn_convert.budget import Point, points
from dmnn_convert.budget.fit import ask, best_choice, candidates
from dmnn_convert.budget.statistics import trained_levels
from dmnn_convert.budget.thresholds import figures_at
from dmnn_convert.data import images, preprocessing, test_loader, test_transform
from dmnn_convert.distributed import joined
from dmnn_convert.finetune import EvaluationBatches, Recipe
from dmnn_convert.io import load_source_checkpoint, zoo

TARGETS = tuple(round(0.3 + 0.05 * i, 2) for i in range(15))
"""FLOPs ratios that cascades and gates are fitted to, by images that were held out."""


def of_one(run: Run, options: argparse.Namespace) -> Iterator[Point]:
    """Yield what one checkpoint comes to: levels and cascades, or gates, at each target."""
    recipe = recipe_of(run, options)
    model, _ = load(_final(run, options), model=zoo.build(f"{FACTORIES}:{run.factory}"))
    held_out, test = images_of(recipe, model)
    policies = ("level", "cascade") if run.policy == "levels" else ("gates",)
    for found in points(
        model, test, policies, held_out=held_out, flops_ratios=TARGETS, progress=True
    ):
        if isinstance(found, Point):
            yield found
        else:
            print(f"{run.name}: {found.policy}: {found.reason}", flush=True)


class _Part(NamedTuple):
    """A network that a cascade may take, and the training that it comes from."""

    name: str
    training: str
    network: nn.Module


def of_two(run: Run, options: argparse.Namespace) -> Iterator[Point]:
    """Yield the best cascade of networks from two trainings, at each target.

    These are the plain networks, and the frozen levels of the one trained for all of them, as far
    as they are trained.
    """
    parts = list(_parts(run, options))
    networks = [part.network for part in parts]
    chosen, measured = (
        ask(networks, loader, "margin", progress=True)
        for loader in images_of(recipe_of(run.apart[-1], options), networks[-1])
    )
    dense, before = float(dense_macs(run.network)), None
    pairs = [one for one in candidates(chosen, fixed=False) if _are_apart(parts, one.networks)]
    for target in TARGETS:
        best = best_choice(pairs, dense * target)
        if best is None or best == before:
            continue
        before, (pair, mean, choice) = best, best
        found = figures_at(measured.answers(pair, mean=mean), choice.thresholds)
        name = " → ".join(parts[i].name for i in pair)
        network = networks[pair[1]]
        yield Point("cascade-of-two", name, found.macs / dense, found.top1, network, target)


def _parts(run: Run, options: argparse.Namespace) -> Iterator[_Part]:
    """Yield the networks of a seed that are trained."""
    missing = []
    for one in (run.levels, *run.apart):
        if not (folder_of(one, options) / "final").exists():
            missing.append(one.name)
        elif one.policy == "levels":
            model, _ = load(_final(one, options), model=zoo.build(f"{FACTORIES}:{one.factory}"))
            for name, path in trained_levels(model.eval()).items():
                yield _Part(f"level {name}", one.name, freeze(model, path))
        else:
            yield _Part(f"static {one.level}", one.name, _trained(one, options))
    if run.apart[-1].name in missing or len(missing) > len(run.apart) - 1:
        sys.exit(f"{run.name} needs the dense network and another; run --only {','.join(missing)}.")
    if missing:
        print(f"{run.name}: without {', '.join(missing)}, which are not trained", flush=True)


def _are_apart(parts: Sequence[_Part], chosen: Sequence[int]) -> bool:
    trainings = {parts[i].training for i in chosen}
    return len(chosen) == 2 and len(trainings) == 2


def alone(run: Run, options: argparse.Namespace) -> Iterator[Point]:
    """Yield what a plain network comes to."""
    network = _trained(run, options)
    _, test = images_of(recipe_of(run, options), network)
    found = ask([network], test, "margin", progress=True)
    share = found.macs[0] / dense_macs(run.network)
    yield Point(run.policy, run.level, share, found.top1(0), network)


def _trained(run: Run, options: argparse.Namespace) -> nn.Module:
    network = zoo.build(f"{FACTORIES}:{run.factory}")
    load_source_checkpoint(network, _final(run, options) / "model.safetensors")
    return network.eval()


def images_of(recipe: Recipe, model: nn.Module) -> tuple[EvaluationBatches, EvaluationBatches]:
    """Return the images that are chosen by, and those that are measured on."""
    data = images.open_data(recipe)
    transform = test_transform(preprocessing(recipe, model, 32))
    with joined(recipe.device) as processes:
        held_out, test = (
            EvaluationBatches(recipe, test_loader(recipe, some, transform, processes), processes)
            for some in (data.held_out, data.test)
        )
    return held_out, test


def _final(run: Run, options: argparse.Namespace) -> Path:
    folder = folder_of(run, options) / "final"
    if not folder.exists():
        sys.exit(f"{folder}: is not there; run --only {run.name} first, with the same --runs.")
    return folder
