"""Norm statistics of each level: estimated, and lent to the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ArgumentError
from ..flops import FlopsTable
from ..nn import (
    LevelStatistics,
    Statistics,
    along_path,
    check_own_statistics,
    controllers,
    in_evaluation,
    multi_path_blocks,
)
from ..progress import tracked
from ..refit import Moments, batches_for, by_batch, device_of, statistics_of
from .level import Level, level_path, path_ratio, table_of


def estimate_levels(
    model: nn.Module,
    loader: Iterable[Any],
    levels: Sequence[Level | Tensor],
    batches: int = 32,
    *,
    progress: bool = False,
) -> None:
    """Estimate the batch-norm statistics of levels, and keep them with the model.

    Norms before the first block have the same inputs at every level, and keep their running
    statistics; so do all norms for the path with every sub-block on. Earlier statistics are
    replaced. They are part of `state_dict`, and `save` and `load` keep them.

    In a distributed run every process must call it with its own share of the images. All processes
    end with the same model, fitted to the images of all of them.

    Args:
        model: a converted model, trained for the levels.
        loader: yields images (B, C, H, W), or tuples or dicts with them; training images.
        levels: as `level_path` takes them, or paths (total sub-blocks,).
        batches: how many batches to look at, for each level.
        progress: whether to show a bar.

    Raises:
        ArgumentError: if the model is not converted or cannot make a level, or the loader is empty.

    Example:
        >>> estimate_levels(model, loader, [0.25, 0.5, 1.0])
    """
    check_own_statistics(model, "estimate_levels")
    paths = [path_of(model, level) for level in levels]
    lower = [path for path in paths if not path.bool().all()]
    found: list[dict[str, Statistics]] = []
    for path in tracked(lower, "statistics of levels", shown=progress):
        found.append(_estimated(model, loader, path, batches))
    controllers(model)[0].levels = None
    if not lower:
        return
    channels = {name: len(own.mean) for by_name in found for name, own in by_name.items()}
    bank = LevelStatistics(torch.stack(lower), channels).to(device_of(model))
    for row, by_name in enumerate(found):
        for name, own in by_name.items():
            for kept, new in zip(bank.of(name, row), own, strict=True):
                kept.copy_(new)
    controllers(model)[0].levels = bank.train(model.training)


def kept_levels(model: nn.Module) -> LevelStatistics | None:
    """Return the module that keeps the statistics of levels; None if there is none.

    It is a child of the first controller, so the user's own modules get no new children.

    Raises:
        ArgumentError: if the model is not converted.
    """
    return controllers(model)[0].levels


def trained_levels(model: nn.Module) -> dict[str, Level | Tensor]:
    """Return a model's levels by name, from the cheapest: those that it was trained for, or all.

    These are the levels and paths with norm statistics, if there are any, or else every level that
    N allows.
    """
    N = max(controllers(model)[0].chain.sizes)
    every: dict[str, Level | Tensor] = {f"{k / N:g}": k / N for k in range(1, N + 1)}
    bank = kept_levels(model)
    if bank is None:
        return every
    held = [path.float().cpu() for path in bank.paths]
    known = {name: path_of(model, level) for name, level in every.items()}
    found = {n: every[n] for n, path in known.items() if any(path.equal(p) for p in held)}
    others = [path for path in held if not any(path.equal(p) for p in known.values())]
    table = table_of(model, "trained_levels")
    found |= {_by_stage(path, table) or f"path {i}": path for i, path in enumerate(others, 1)}
    found["1"] = 1.0
    costs = {name: path_ratio(table, path_of(model, level)) for name, level in found.items()}
    return dict(sorted(found.items(), key=lambda item: costs[item[0]]))


def _by_stage(path: Tensor, table: FlopsTable) -> str | None:
    """Return the number of first sub-blocks per block in each stage; None for any other path."""
    counts: dict[int, set[int]] = {}
    for stage, part in zip(table.stages, path.split(table.sizes), strict=True):
        count = int(part.sum())
        if not part[:count].all():
            return None
        counts.setdefault(stage, set()).add(count)
    if any(len(own) > 1 for own in counts.values()):
        return None
    shown = "-".join(str(own.pop()) for _, own in sorted(counts.items()))
    return f"{shown} of {max(table.sizes)}"


def level_statistics(model: nn.Module, level: Level | Tensor) -> dict[str, Statistics]:
    """Return the statistics that a level's norms have, by the norms' names in the model.

    Norms that are not named use their own running statistics, as all do if every sub-block is on.

    Raises:
        ArgumentError: if none were estimated for this level.

    Example:
        >>> estimate_levels(model, loader, [0.5])
        >>> statistics = level_statistics(model, 0.5)  # by the names of norms
    """
    path = path_of(model, level)
    if path.bool().all():
        return {}
    bank = kept_levels(model)
    row = None if bank is None else bank.row(path)
    if bank is None or row is None:
        shown = level if not isinstance(level, Tensor) else "of these gates"
        raise ArgumentError(
            f"level {shown}: the model keeps no norm statistics for it, and those of the whole "
            "network do not fit. Call dmnn_convert.estimate_levels(model, loader, levels) first."
        )
    strangers = set(bank.norms) - {name for name, _ in model.named_modules()}
    if strangers:
        raise ArgumentError(
            f"{type(model).__name__} has no {sorted(strangers)[0]}, whose statistics were "
            "estimated: give the model that estimate_levels was given, not one around or inside it."
        )
    return {name: bank.of(name, row) for name in bank.norms}


@contextmanager
def at_level(model: nn.Module, level: Level | Tensor) -> Iterator[None]:
    """Run a model at a level: its path and its norm statistics, for the passes inside the block.

    The statistics are written into the model itself: no other thread must run it meanwhile, and
    its `state_dict` has them. What training does to them inside the block is dropped.

    Args:
        model: a converted model that `estimate_levels` or ``finetune --levels`` has been through.
        level: as `level_path` takes it, or a path (total sub-blocks,).

    Raises:
        ArgumentError: if the model is not converted, cannot make the level, or keeps no statistics
            for it.

    Example:
        >>> estimate_levels(model, loader, [0.5, 1.0])
        >>> with at_level(model, 0.5):
        ...     logits = model(images)
    """
    path, statistics = path_of(model, level), level_statistics(model, level)
    bank = kept_levels(model) if statistics else None
    lent = bank is not None and bank.lent
    norms: list[Any] = [(model.get_submodule(name), own) for name, own in statistics.items()]
    before = [Statistics(norm.running_mean, norm.running_var) for norm, _ in norms]
    try:
        for norm, own in norms:
            norm.running_mean, norm.running_var = (t.to(norm.running_mean, copy=True) for t in own)
        if bank is not None:
            bank.lent = True
        with along_path(model, path):
            yield
    finally:
        if bank is not None:
            bank.lent = lent
        for (norm, _), own in zip(norms, before, strict=True):
            norm.running_mean, norm.running_var = own


def path_of(model: nn.Module, level: Level | Tensor) -> Tensor:
    """Return the gates (total sub-blocks,) of a level, or the given gates.

    Raises:
        ArgumentError: if the model is not converted or cannot make the level, or gates are not
            zeros and ones, one for each sub-block.
    """
    if not isinstance(level, Tensor):
        return level_path(model, level)
    total = sum(controllers(model)[0].chain.sizes)
    if level.shape != (total,) or not torch.all((level == 0) | (level == 1)):
        raise ArgumentError(
            f"a path of shape {tuple(level.shape)}: give zeros and ones, ({total},), one for each "
            "sub-block, or a level."
        )
    return level.detach().float().cpu()


def _estimated(
    model: nn.Module, loader: Iterable[Any], path: Tensor, batches: int
) -> dict[str, Statistics]:
    """Return the statistics of norms on a path, by name."""
    given = batches_for(model, loader, batches, "estimate_levels")
    moments: dict[_BatchNorm, Moments] = {}
    with in_evaluation(model, "skip"), along_path(model, path):
        for images in given:
            if not moments:
                moments.update({n: Moments(n.num_features) for n in _after_choice(model, images)})
            with by_batch(moments):
                model(images)
    names = {module: name for name, module in model.named_modules()}
    found = {}
    for norm, moment in moments.items():
        moment.add_up()
        if moment.count > 1:
            found[names[norm]] = Statistics(*statistics_of(moment))
    return found


def _after_choice(model: nn.Module, images: Tensor) -> list[_BatchNorm]:
    """Return the norms that run from the first block on, but for the controllers'."""
    own = {m for controller in controllers(model) for m in controller.modules()}
    norms = [
        m
        for m in model.modules()
        if isinstance(m, _BatchNorm) and m.running_mean is not None and m not in own
    ]
    before: set[nn.Module] = set()
    begun = False

    def begin(*_: Any) -> None:
        nonlocal begun
        begun = True

    def note(norm: nn.Module, *_: Any) -> None:
        if not begun:
            before.add(norm)

    first = multi_path_blocks(model)[0]
    hooks = [first.register_forward_pre_hook(begin)]
    hooks += [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        model(images.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return [norm for norm in norms if norm not in before]
