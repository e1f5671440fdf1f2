"""Levels: the paths that run the first sub-blocks of every block, alike for all images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..flops import FlopsTable
from ..nn import controllers, conversion_within

Level = float | tuple[float, ...]
"""The share of their sub-blocks that all blocks run; a tuple has one for each stage."""


_SLACK = 0.05
"""Largest distance of a level from a whole number of sub-blocks: 0.33 counts as a third."""


def level_path(model: nn.Module, level: Level) -> Tensor:
    """Return the gates of a level, (total sub-blocks,) zeros and ones, for `force_gates`.

    Every block runs its first ``round(level * N)`` sub-blocks, which is rounded separately for each
    N. A block without a shortcut runs at least one.

    Args:
        model: a converted model.
        level: a share in (0, 1], or a tuple of these, one for each stage (`FlopsTable.stages`).

    Raises:
        ArgumentError: for a level that is not in (0, 1], or that no block's N can make; for another
            number of levels than the model has stages; or for a model that is not converted.

    Example:
        >>> level_path(model, 0.5)  # of two blocks with four sub-blocks each
        tensor([1., 1., 0., 0., 1., 1., 0., 0.])
        >>> with force_gates(model, level_path(model, 0.5)):
        ...     logits = model(images)
    """
    found = controllers(model)
    by_block = [level] * len(found) if isinstance(level, Real) else _by_stage(model, level)
    sizes = found[0].chain.sizes
    for share in dict.fromkeys(by_block):
        check_level(share, [n for n, own in zip(sizes, by_block, strict=True) if own == share])
    parts = [
        _first(N, share, keep_one=controller.keep_one)
        for controller, N, share in zip(found, sizes, by_block, strict=True)
    ]
    return torch.cat(parts)


def table_of(model: nn.Module, call: str) -> FlopsTable:
    """Return the model's own FLOPs table, which knows the stages of its blocks.

    Raises:
        ArgumentError: if the model has none.
    """
    conversion = conversion_within(model)
    table = None if conversion is None else conversion.table
    if not isinstance(table, FlopsTable):
        raise ArgumentError(
            f"{call}: {type(model).__name__} carries no FLOPs table, which tells the stages of its "
            "blocks. Give the model that dynamize returned, not a part of it."
        )
    return table


def path_ratio(table: FlopsTable, path: Tensor) -> float:
    """Return a path's FLOPs over the source's, without the controllers, which it does not need."""
    flops = float(table.network_flops(path[None])[0]) - table.controllers
    return flops / table.dense_total


def check_levels(levels: Sequence[float], sizes: Sequence[int]) -> None:
    """Check levels to train for: rising, the last one all on, and possible with these N.

    Args:
        levels: shares in (0, 1].
        sizes: numbers of sub-blocks that blocks have.

    Raises:
        ArgumentError: if they are not.
    """
    for level in levels:
        check_level(level, sizes)
    if list(levels) != sorted(set(levels)):
        raise ArgumentError(f"levels={list(levels)}: give rising levels, each once.")
    if len(levels) < 2 or levels[-1] != 1:
        raise ArgumentError(
            f"levels={list(levels)}: give two or more, the last one 1, all sub-blocks, which the "
            "others learn from."
        )


def check_level(level: float, sizes: Sequence[int]) -> None:
    """Check one level.

    Raises:
        ArgumentError: if it is not in (0, 1], or no block of these sizes can make it.
    """
    if isinstance(level, bool) or not isinstance(level, Real) or not 0 < level <= 1:
        raise ArgumentError(f"level {level!r}: give a number above 0 and at most 1.")
    if any(_makes(N, level) for N in sizes):
        return
    N = max(sizes)
    below, above = math.floor(level * N) / N, math.ceil(level * N) / N
    near = f"{below:g} or {above:g}" if below else f"{above:g}"
    raise ArgumentError(
        f"level {level:g}: {N} sub-blocks per block cannot make it. Give {near}, or convert with "
        f"another N, such as N={smallest_for((level,))}."
    )


def smallest_for(levels: Sequence[float]) -> int:
    """Return the smallest N whose sub-blocks can make all of these levels.

    Raises:
        ArgumentError: if that is more than 64.
    """
    for N in range(1, _MOST + 1):
        if all(_makes(N, level) for level in levels):
            return N
    raise ArgumentError(
        f"levels={list(levels)}: no number of sub-blocks up to {_MOST} makes all of them; give "
        "quarters, thirds or the like."
    )


_MOST = 64


def _makes(N: int, level: float) -> bool:
    return abs(level * N - round(level * N)) <= _SLACK and round(level * N) >= 1


def _by_stage(model: nn.Module, levels: Any) -> list[float]:
    stages = table_of(model, "level_path").stages
    if not isinstance(levels, Sequence) or isinstance(levels, str):
        raise ArgumentError(
            f"level_path(level={levels!r}): give a share in (0, 1], or a tuple of them, one for "
            "each stage."
        )
    if len(levels) != len(set(stages)):
        raise ArgumentError(
            f"level_path(level={tuple(levels)}): gives {len(levels)} levels, but the model has "
            f"{len(set(stages))} stages; give one for each, or one number for all blocks."
        )
    return [levels[stage] for stage in stages]


def _first(N: int, level: float, *, keep_one: bool) -> Tensor:
    running = max(round(level * N), int(keep_one))
    return (torch.arange(N) < running).float()
