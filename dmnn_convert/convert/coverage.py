"""The part of a model that a conversion covers, in one line, and why the rest stayed dense."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from ..flops import FlopsTable
from ..nn import conversion_of

NOT_SELECTED = "not selected"
SHOWN = 3
"""Most reasons in the line; the others are counted."""


def left_dense(model: nn.Module) -> Mapping[str, str]:
    """Return the blocks and near misses of a converted model that stayed dense, and why."""
    conversion = conversion_of(model)
    return {} if conversion is None else conversion.left


def in_part(model: nn.Module, table: FlopsTable) -> str:
    """Return "7 of 16 blocks, 0.37 of the MACs; the others: 9 × …"; "" where no block is left."""
    left = left_dense(model)
    if not left:
        return ""
    groups: dict[str, list[str]] = {}
    for name, reason in left.items():
        groups.setdefault(_kind(reason), []).append(name)
    ordered = sorted(groups.values(), key=lambda names: -len(names))
    others = [f"{len(names)} × {left[names[0]]} [{_first(names)}]" for names in ordered[:SHOWN]]
    if rest := sum(map(len, ordered[SHOWN:])):
        others.append(f"{rest} for other reasons")
    converted = len(table.blocks)
    return (
        f"{converted} of {converted + len(left)} blocks, "
        f"{table.gated / table.dense_total:.2f} of the MACs; the others: {'; '.join(others)}"
    )


def _first(names: list[str]) -> str:
    return names[0] + (", …" if len(names) > 1 else "")


def _kind(reason: str) -> str:
    """Return a reason without what only one block has: lines of code, names, numbers."""
    reason = re.sub(r"^\S+(?= \()", "…", reason)
    while (shorter := re.sub(r"\([^()]*\)", "", reason)) != reason:
        reason = shorter
    return re.sub(r"\S*[\d_]\S*", "…", reason)
