"""Misfits: converted blocks that do not see exactly one row per image.

A graph shows operations, not shapes. A transformer may have folded its windows or patches into the
batch, and a sum may broadcast one value per channel over a whole map. Only a run shows this. Gates
have one row per image, so such blocks have to stay dense.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..dryrun import Cost
from ..nn import MultiPathBlock, NestedBlock, SqueezingSubBlock

BATCH = 1
"""Images in the forward pass that costs are measured on."""


def misfits(model: nn.Module, blocks: Sequence[MultiPathBlock], cost: Cost) -> dict[int, str]:
    """Return the index of each block that cannot have gates per image, with the reason."""
    paths = {id(module): path for path, module in model.named_modules()}
    reasons = {i: _misfit(block, paths[id(block)], cost) for i, block in enumerate(blocks)}
    return {i: reason for i, reason in reasons.items() if reason is not None}


def _misfit(block: MultiPathBlock, path: str, cost: Cost) -> str | None:
    calls = cost.calls.get(path, [])
    if len(calls) != 1:
        return f"it runs {len(calls)} times in one forward pass"
    rows = calls[0][0][0]
    if rows != BATCH:
        return f"it reads {rows} rows for each image (windows or patches folded into the batch)"
    for share, shapes in cost.calls.items():
        if share.startswith(f"{path}.body.") and shapes[0][0][0] != BATCH:
            return f"its hidden channels have {shapes[0][0][0]} rows for each image"
    summed = _shape_of_sum(block, path, cost)
    if len(calls[0]) > 1 and summed is not None and calls[0][1][1:] != summed:
        return "it sums values of different shapes (broadcast)"
    return None


def _shape_of_sum(block: MultiPathBlock, path: str, cost: Cost) -> tuple[int, ...] | None:
    if isinstance(block, NestedBlock):
        return cost.shapes[f"{path}.body"][1]
    last = f"{path}.post" if block.post is not None else f"{path}.sub_blocks.0"
    if block.post is None and isinstance(block.sub_blocks[0], SqueezingSubBlock):
        last += ".excite"
    shapes = cost.shapes.get(last)
    return None if shapes is None else shapes[1]
