"""The floor of a network: the smallest share of its FLOPs that a target can ask for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn

from ..errors import ArgumentError
from ..find import find_blocks
from ..flops import FlopsTable
from ..nn import controllers
from .network import Networks

_SHOWN = 3


def floor_of(model: nn.Module, table: FlopsTable) -> float:
    """Return a network's FLOPs over the source's with every sub-block off that can be off.

    A block without a shortcut runs at least one sub-block: the cheapest, here.
    """
    macs = torch.tensor([float(row.macs) for row in table.rows]).split(table.sizes)
    parts = []
    for controller, costs in zip(controllers(model), macs, strict=True):
        part = torch.zeros_like(costs)
        if controller.keep_one:
            part[0 if controller.nested else costs.argmin()] = 1
        parts.append(part)
    return float(table.network_flops(torch.cat(parts)[None])[0]) / table.dense_total


def check_target(target: float, networks: Networks) -> None:
    """Check that a network can reach a target, before training for it.

    Raises:
        ArgumentError: if it cannot; the message gives the floor, and why.
    """
    if networks.table is None:
        return
    floor = floor_of(networks.model, networks.table)
    if floor <= target:
        return
    reasons = "; ".join(_reasons(networks)) or "that is what stem, shortcuts and head take"
    raise ArgumentError(
        f"Recipe(target={target:g}): this network runs at least {floor:.2f} of its FLOPs, "
        f"whatever its gates do: {reasons}. Give --target {floor + 0.005:.2f} or more, a larger "
        "-N, or another --split or --where."
    )


def _reasons(networks: Networks) -> Iterator[str]:
    """Yield the reasons for a network's floor."""
    if networks.table is None:
        return
    converted, found = set(networks.table.blocks), find_blocks(networks.source)
    dense = [b for b in found if b.name not in converted]
    if dense:
        why = Counter(b.reason or "not among the blocks to convert" for b in dense)
        listed = ", ".join(f"{text} ({n})" for text, n in why.most_common(_SHOWN))
        yield f"{len(dense)} of {len(found)} blocks stay dense, because {listed}"
    kept = sum(c.keep_one for c in controllers(networks.model))
    if kept:
        yield f"{kept} blocks have no shortcut, and run at least one sub-block"
