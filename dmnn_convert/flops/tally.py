"""The tally of a converted model: its costs as rows of the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import nn

from ..dryrun import Shape
from ..nn import MultiPathBlock, NestedBlock
from .rows import FixedRow, Row

# --- counting ---------------------------------------------------------------------------------

CONTROLLERS = "controllers"


SHARED = ("trunk", "squeeze", "shared_norm", "post")


def block_rows(
    name: str,
    block: MultiPathBlock,
    path: str,
    macs: Counter[str],
    shapes: tuple[Shape, Shape],
    stage: int,
) -> list[Row]:
    """Return the rows of a block's sub-blocks."""
    if isinstance(block, NestedBlock):
        return _nested_rows(name, block, path, macs, shapes, stage)
    return [
        Row(name, n, macs[f"{path}.sub_blocks.{n}"], count(sub_block), *shapes, stage)
        for n, sub_block in enumerate(block.sub_blocks)
    ]


def _nested_rows(
    name: str,
    block: NestedBlock,
    path: str,
    macs: Counter[str],
    shapes: tuple[Shape, Shape],
    stage: int,
) -> list[Row]:
    """List the cost that each sub-block adds; layers that are never cut run with the first."""
    N, rows = block.controller.N, []
    before = (0, 0)
    for n in range(N):
        now = (_nested_macs(block, n + 1, f"{path}.body", macs), count(block.first(n + 1)))
        rows.append(Row(name, n, now[0] - before[0], now[1] - before[1], *shapes, stage))
        before = now
    return rows


def _nested_macs(block: NestedBlock, k: int, body: str, macs: Counter[str]) -> int:
    """Return the cost of the first `k` sub-blocks: layers keep their number of output positions."""
    total = macs[body]
    for layer, ends in block.ends.items():
        children = block.body.get_submodule(layer).named_children()
        whole = macs[f"{body}.{layer}"] - sum(
            macs[f"{body}.{layer}.{name}"] for name, _ in children
        )
        kept = whole
        for end in filter(None, ends):
            kept = kept * end[k - 1] // end[-1]
        total -= whole - kept
    return total


def stage(rows: list[Row], shapes: tuple[Shape, Shape]) -> int:
    """Return a block's stage: one more than the row before where the size of images changes."""
    if not rows:
        return 0
    same = rows[-1].output_shape[1:] == shapes[1][1:]
    return rows[-1].stage if same else rows[-1].stage + 1


def dense_macs(block: MultiPathBlock, path: str, macs: Counter[str]) -> int:
    """Return the cost of the source's branch: layers have as many output positions."""
    total = sum(macs[f"{path}.{part}"] for part in (*SHARED, "body"))
    for layer, weights in block.dense_weights.items():
        own = block.get_submodule(layer).weight.numel()  # type: ignore[operator]
        total += macs[f"{path}.{layer}"] * weights // own
    for n in range(len(block.sub_blocks)):
        # Whatever else multiplies (a blur) treats every channel by itself.
        layers = [
            name.replace("sub_blocks.0", f"sub_blocks.{n}", 1) for name in block.dense_weights
        ]
        total += macs[f"{path}.sub_blocks.{n}"] - sum(macs[f"{path}.{name}"] for name in layers)
    return total


def fixed_rows(
    model: nn.Module,
    macs: Counter[str],
    blocks: list[MultiPathBlock],
    paths: dict[int, str],
    fixed: int,
) -> list[FixedRow]:
    """List the parts that always run: the largest modules without a gate, then the controllers."""
    multi_path = {paths[id(block)] for block in blocks}
    rows = list(_outside(model, "", macs, multi_path))
    rows.append(
        FixedRow(
            CONTROLLERS,
            sum(macs[f"{path}.controller"] for path in multi_path),
            sum(count(block.controller) for block in blocks),
        )
    )
    listed_params = sum(r.params for r in rows) + sum(count(b) for b in blocks)
    listed_params -= rows[-1].params
    other_macs = fixed - sum(row.macs for row in rows)
    other_params = count(model) - listed_params
    if other_macs or other_params:
        rows.insert(-1, FixedRow("other", other_macs, other_params))
    return rows


def _outside(
    module: nn.Module, path: str, macs: Counter[str], multi_path: set[str]
) -> Iterable[FixedRow]:
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if inner in multi_path:
            continue
        if any(p.startswith(f"{inner}.") for p in multi_path):
            yield from _outside(child, inner, macs, multi_path)
        elif macs[inner] or count(child):
            yield FixedRow(inner, macs[inner], count(child))


def count(module: nn.Module) -> int:
    """Return a module's number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
