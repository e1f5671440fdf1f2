"""The policies of finished trainings, at several budgets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from budget_runs import Run, folder_of, recipe_of
from slices import FACTORIES, dense_macs
from torch import nn

from dmnn_convert import load
from dmnn_convert.budget import Point, points
from dmnn_convert.budget.fit import ask, best_choice, candidates
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
    held_out, test = _images(recipe, model)
    policies = ("level", "cascade") if run.policy == "levels" else ("gates",)
    for found in points(
        model, test, policies, held_out=held_out, flops_ratios=TARGETS, progress=True
    ):
        if isinstance(found, Point):
            yield found
        else:
            print(f"{run.name}: {found.policy}: {found.reason}", flush=True)


def of_two(run: Run, options: argparse.Namespace) -> Iterator[Point]:
    """Yield the best cascade of two networks that were trained apart, at each target."""
    networks = [_trained(one, options) for one in run.apart]
    chosen, measured = (
        ask(networks, loader, "margin", progress=True)
        for loader in _images(recipe_of(run.apart[-1], options), networks[-1])
    )
    dense, before = float(chosen.macs[-1]), None
    pairs = [one for one in candidates(chosen, fixed=False) if len(one.networks) == 2]
    for target in TARGETS:
        best = best_choice(pairs, dense * target)
        if best is None or best == before:
            continue
        before, (pair, mean, choice) = best, best
        found = figures_at(measured.answers(pair, mean=mean), choice.thresholds)
        name = " → ".join(run.apart[i].level for i in pair)
        network = networks[pair[1]]
        yield Point("cascade-of-two", name, found.macs / dense, found.top1, network, target)


def alone(run: Run, options: argparse.Namespace) -> Iterator[Point]:
    """Yield what a plain network comes to."""
    network = _trained(run, options)
    _, test = _images(recipe_of(run, options), network)
    found = ask([network], test, "margin", progress=True)
    share = found.macs[0] / dense_macs(run.network)
    yield Point(run.policy, run.level, share, found.top1(0), network)


def _trained(run: Run, options: argparse.Namespace) -> nn.Module:
    network = zoo.build(f"{FACTORIES}:{run.factory}")
    load_source_checkpoint(network, _final(run, options) / "model.safetensors")
    return network.eval()


def _images(recipe: Recipe, model: nn.Module) -> tuple[EvaluationBatches, EvaluationBatches]:
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
