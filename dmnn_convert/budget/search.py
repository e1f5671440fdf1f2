"""A search, without training, for the paths by stage that lose least at a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..distributed import summed
from ..errors import ArgumentError
from ..flops import FlopsTable
from ..foreign import images_and_labels, logits_of
from ..nn import along_path, controllers, in_evaluation
from ..progress import tracked
from ..refit import device_of
from .level import level_path, path_ratio, table_of


class _StagePath(NamedTuple):
    """A path by stage: the number of sub-blocks that each stage runs, the gates and the cost."""

    steps: tuple[int, ...]
    path: Tensor
    ratio: float


def search_levels(
    model: nn.Module, loader: Iterable[Any], flops_ratio: float, batches: int = 16
) -> Tensor:
    """Find a path by stage, (total sub-blocks,) gates, that loses little at a budget.

    Starting with all sub-blocks on, one stage at a time gives up a sub-block of each of its blocks:
    always the stage that adds least to the loss for the FLOPs that it saves, until the network's
    FLOPs are within the budget. Nothing is trained, and batch norms divide by their batch's own
    statistics; `estimate_levels` takes the path and keeps statistics for it.

    In a distributed run every process must call it with its own share of the images, and all of
    them find the same path.

    Args:
        model: a converted model; best one trained for levels.
        loader: yields images (B, C, H, W) and classes (B,), held out from training.
        flops_ratio: FLOPs of the network to stay within, over the source's; controllers, which a
            path does not need, do not count.
        batches: how many batches to look at, for every path that is tried.

    Raises:
        ArgumentError: if the model is not converted as a whole, the budget is not in (0, 1] or
            less than every stage's first sub-blocks take, or the loader is empty or has no labels.

    Example:
        >>> path = search_levels(model, held_out, 0.6)
        >>> estimate_levels(model, loader, [0.25, path, 1.0])
    """
    _check_budget(flops_ratio)
    least = _ends(model, "search_levels")[1].ratio
    if least > flops_ratio:
        raise ArgumentError(
            f"search_levels(flops_ratio={flops_ratio:g}): one sub-block per block, and all that "
            f"always runs, take {least:.3f} of the source's FLOPs already. Give that or "
            "more, or convert with more sub-blocks."
        )
    with closing(_descent(model, _labelled(loader, batches, "search_levels"))) as paths:
        return next(found.path for found in paths if found.ratio <= flops_ratio)


def search_ladder(
    model: nn.Module,
    loader: Iterable[Any],
    step: float = 0.05,
    batches: int = 16,
    *,
    progress: bool = False,
) -> list[Tensor]:
    """Find a path by stage for every budget that the model can meet, from the cheapest on.

    They are the paths that `search_levels` passes on its way to the lowest budget, without the
    one with all sub-blocks on.

    Args:
        model: a converted model; best one trained for levels.
        loader: yields images (B, C, H, W) and classes (B,).
        step: least difference in FLOPs between neighbouring paths, over the source's.
        batches: how many batches to look at, for every path that is tried.
        progress: whether to show a bar.

    Raises:
        ArgumentError: if the model is not converted as a whole, or the loader is empty or has no
            labels.

    Example:
        >>> ladder = search_ladder(model, held_out)
        >>> estimate_levels(model, loader, [0.25, 0.5, *ladder, 1.0])
    """
    most, least = _ends(model, "search_ladder")
    descent = _descent(model, _labelled(loader, batches, "search_ladder"))
    steps = 1 + sum(most.steps) - sum(least.steps)
    first, *lower = tracked(descent, "search for paths by stage", steps, shown=progress)
    kept = [first]
    for found in lower:
        if kept[-1].ratio - found.ratio >= step:
            kept.append(found)
    return [found.path for found in reversed(kept[1:])]


def _ends(model: nn.Module, call: str) -> tuple[_StagePath, _StagePath]:
    """Return all sub-blocks on, and the first one of every block."""
    table = table_of(model, call)
    sizes = controllers(model)[0].chain.sizes
    most = tuple(
        max(n for n, own in zip(sizes, table.stages, strict=True) if own == stage)
        for stage in sorted(set(table.stages))
    )
    return _stage_path(model, table, most, most), _stage_path(model, table, (1,) * len(most), most)


def _descent(
    model: nn.Module, images: Sequence[tuple[Tensor, Tensor]]
) -> Generator[_StagePath, None, None]:
    """Yield paths from all sub-blocks on to the cheapest, each with one stage a sub-block lower."""
    table = table_of(model, "search_levels")
    now, least = _ends(model, "search_levels")
    most = now.steps
    yield now
    with in_evaluation(model, "skip"), own_statistics(model):
        loss = _loss(model, images, now.path)
        while now.steps != least.steps:
            tried = []
            for stage, steps in enumerate(now.steps):
                if steps > 1:
                    fewer = (*now.steps[:stage], steps - 1, *now.steps[stage + 1 :])
                    found = _stage_path(model, table, fewer, most)
                    worse = _loss(model, images, found.path)
                    tried.append(((worse - loss) / (now.ratio - found.ratio), worse, found))
            _, loss, now = min(tried, key=lambda one: one[0])
            yield now


def _check_budget(flops_ratio: float) -> None:
    number = isinstance(flops_ratio, int | float) and not isinstance(flops_ratio, bool)
    if not number or not 0 < flops_ratio <= 1:
        raise ArgumentError(
            f"search_levels(flops_ratio={flops_ratio!r}): give a number above 0 and at most 1, the "
            "network's FLOPs over the source's."
        )


def _stage_path(
    model: nn.Module, table: FlopsTable, steps: tuple[int, ...], most: tuple[int, ...]
) -> _StagePath:
    path = level_path(model, tuple(k / N for k, N in zip(steps, most, strict=True)))
    return _StagePath(steps, path, path_ratio(table, path))


def _labelled(loader: Iterable[Any], batches: int, call: str) -> Sequence[tuple[Tensor, Tensor]]:
    taken = itertools.islice(loader, batches)
    given = [images_and_labels(batch, call) for batch in taken]
    if not summed(torch.tensor(float(len(given)))):
        raise ArgumentError(f"{call}: the loader gave no batch; give held-out images.")
    return given


def _loss(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], path: Tensor) -> float:
    """Return the mean loss of a path over the images of all processes."""
    device, sums = device_of(model), torch.zeros(2, dtype=torch.float64)
    with along_path(model, path):
        for images, labels in batches:
            output = model(images.to(device, copy=True))
            logits = logits_of(output, len(images), "search_levels").float().cpu()
            loss = F.cross_entropy(logits, labels.cpu().long(), reduction="sum")
            sums += torch.tensor([float(loss), len(labels)], dtype=torch.float64)
    total, count = summed(sums).tolist()
    if not math.isfinite(total):
        raise ArgumentError(
            "search_levels: the loss of a path is not finite; look for NaN or infinite values in "
            "the images, or in the network's weights."
        )
    return float(total / count)


@contextmanager
def own_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norms divide by their batch's statistics, and leave the running ones alone."""
    own = {m for controller in controllers(model) for m in controller.modules()}
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m not in own]
    before = [(norm, norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, training, tracked in before:
            norm.training, norm.track_running_stats = training, tracked
