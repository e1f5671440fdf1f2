"""The accuracy and time of what ``deploy`` wrote, in its engine on the test images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Preprocessing, images, test_loader, test_transform
from ..deployment import load_deployed
from ..distributed import Processes
from ..errors import ArgumentError
from ..finetune import EvaluationBatches, Recipe
from ..progress import tracked


def assess_deployed(recipe: Recipe, directory: Path, processes: Processes) -> dict[str, Any]:
    """Run a deployed network on a recipe's test images, and return its figures.

    Args:
        recipe: the data.
        directory: where `deploy` wrote.
        processes: which process this is; there may be one only.

    Raises:
        ArgumentError: if the images have other classes, or it is unknown how to prepare them.
        CheckpointError: if the directory is incomplete or damaged.
    """
    if processes.count > 1:
        raise ArgumentError("a deployed network is evaluated in one process; leave torchrun out.")
    network = load_deployed(directory)
    told = network.told
    if len(told["output"]) != 1:
        raise ArgumentError(f"{directory}: answers with {told['output']} numbers, not classes.")
    test, classes = images.open_test(recipe)
    if told["classes"] and list(classes) != told["classes"]:
        raise ArgumentError(
            f"{recipe.call('data')}: has the classes {', '.join(classes)}, but {directory} answers "
            f"with {', '.join(told['classes'])}; give images in the same folders."
        )
    transform = test_transform(_preparation(recipe, directory, told))
    loader = test_loader(recipe, test, transform, processes)
    batches = EvaluationBatches(recipe, loader, processes)
    taken, right, answered = 0.0, 0, np.zeros(len(told["networks"]), np.int64)
    for batch in tracked(batches, "evaluating", len(loader), shown=True):
        given = batch.images.contiguous()
        if not answered.any():
            network.answered(given)  # an engine's first answer takes longer
        begun = time.perf_counter()
        answers, levels = network.answered(given)
        taken += time.perf_counter() - begun
        right += int((answers.argmax(1) == batch.labels).sum())
        answered += np.bincount(levels.numpy(), minlength=len(answered))
    count = int(answered.sum())
    if not count:
        raise ArgumentError(f"{recipe.call('data')}: none of its images can be read.")
    return {
        "policy": told["policy"],
        "precision": told["precision"],
        "engine": network.engine,
        "images": count,
        "classes": len(classes),
        "bad_images": batches.all_skipped(),
        "top1": 100 * right / count,
        "batch_size": recipe.batch_size,
        "milliseconds": 1000 * taken / count,
        "answered_by": (answered / count).tolist(),
    }


def _preparation(recipe: Recipe, directory: Path, told: dict[str, Any]) -> Preprocessing:
    said = told["preprocessing"] or {}
    mean, std = recipe.mean or said.get("mean"), recipe.std or said.get("std")
    if not mean or not std:
        raise ArgumentError(
            f"{directory}: does not say how images are prepared; give --mean and --std."
        )
    more = {name: said[name] for name in ("crop_pct", "interpolation") if name in said}
    return Preprocessing(told["input"][-1], tuple(mean), tuple(std), **more)


def as_text(directory: Path, found: dict[str, Any]) -> str:
    """Return the figures as text for people."""
    lines = [
        f"{directory}: a {found['policy']} of {found['precision']} in {found['engine']}, "
        f"{found['images']:,} images of {found['classes']} classes",
        f"  top-1 {found['top1']:.2f} %, {found['milliseconds']:.3f} ms an image in batches of "
        f"{found['batch_size']}",
    ]
    if len(found["answered_by"]) > 1:
        shares = ", ".join(f"{100 * share:.1f} %" for share in found["answered_by"])
        lines.append(f"  answered by each network, the cheapest first: {shares}")
    if found["bad_images"]:
        lines.append(f"  left out, because they cannot be read: {found['bad_images']} images")
    return "\n".join(lines)
