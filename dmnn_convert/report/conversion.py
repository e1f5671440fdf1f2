"""The report on a conversion: blocks, sub-blocks and costs, as text, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..convert import in_part, left_dense
from ..find import Block
from ..flops import FlopsTable
from ..nn import MultiPathBlock, multi_path_blocks
from ..text import aligned


@dataclass(frozen=True)
class ConversionReport:
    """A conversion in figures.

    Attributes:
        name: the architecture.
        found: every block and near miss of the source.
        model: the converted model.
        table: its FLOPs table.
        errors: measured output error by enclosing module, where a split is approximate.
        measured_on: the images that the errors were measured on.
    """

    name: str
    found: Sequence[Block]
    model: nn.Module
    table: FlopsTable
    errors: Mapping[str, float] = field(default_factory=dict)
    measured_on: str = ""

    @property
    def N(self) -> int | dict[str, int]:
        """Number of sub-blocks per block; by block where it differs."""
        sizes = self._sizes
        return sizes if len(set(sizes.values())) > 1 else max(sizes.values())

    @property
    def _sizes(self) -> dict[str, int]:
        return dict(zip(self.table.blocks, self.table.sizes, strict=True))

    @property
    def blocks(self) -> list[MultiPathBlock]:
        """The multi-path blocks, in execution order."""
        return multi_path_blocks(self.model)

    @property
    def shared_norms(self) -> int:
        """Number of blocks with one tail norm for all their sub-blocks."""
        return sum(block.shared_norm is not None for block in self.blocks)

    @property
    def all_off(self) -> int:
        """Fewest MACs that an image can cost: blocks without a shortcut keep one sub-block."""
        gates = torch.zeros(1, len(self.table.rows))
        start = 0
        for block, size in zip(self.blocks, self.table.sizes, strict=True):
            if block.controller.keep_one:
                costs = [row.macs for row in self.table.rows[start : start + size]]
                kept = 0 if block.controller.nested else costs.index(min(costs))
                gates[0, start + kept] = 1
            start += size
        return int(self.table.network_flops(gates)[0])

    @property
    def _told(self) -> list[Block]:
        """What was found, with the reasons that only the conversion showed."""
        left = left_dense(self.model)
        return [replace(b, reason=left.get(b.name, b.reason)) for b in self.found]

    @property
    def left_dense(self) -> list[Block]:
        """Blocks and near misses that were not converted, with the reason."""
        return [block for block in self._told if block.name not in self.table.blocks]

    def as_text(self, verbose: bool = False) -> str:
        """Return the report for people; `verbose` lists every block and sub-block."""
        top = [in_part(self.model, self.table)]
        parts = [*filter(None, top), self._heading(), self._found(verbose)]
        parts.append(str(self.table) if verbose else self._stages())
        parts.append(self._before_and_after())
        if self.errors:
            parts.append(self._fidelity())
        return "\n\n".join(parts)

    def as_json(self) -> str:
        """Return the report for programs."""
        table = self.table
        values: dict[str, Any] = {
            "name": self.name,
            "N": self.N,
            "blocks": [
                {
                    "name": block.name,
                    "kind": block.kind,
                    "shortcut": block.shortcut,
                    "widths": block.widths,
                    "reason": block.reason,
                    "converted": block.name in table.blocks,
                    "stage": block.stage,
                    "N": self._sizes.get(block.name),
                }
                for block in self._told
            ],
            "shared_tail_norms": self.shared_norms,
            "params": {"source": table.dense_params, "converted": table.params},
            "controller_params": self._controller_params(),
            "macs": {
                "source": table.dense_total,
                "all_on": table.total,
                "all_off": self.all_off,
                "gated": table.gated,
                "fixed": table.fixed,
                "controllers": table.controllers,
            },
            "errors": dict(self.errors),
            "measured_on": self.measured_on,
            "table": json.loads(table.to_json()),
        }
        return json.dumps(values, indent=1)

    def as_csv(self) -> str:
        """Return one line for every sub-block, trunk and part that always runs."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["part", "block", "sub_block", "stage", "macs", "params", "N"])
        sizes = self._sizes
        for row in self.table.rows:
            place = (row.block, row.sub_block, row.stage)
            writer.writerow(["sub_block", *place, row.macs, row.params, sizes[row.block]])
        for trunk in self.table.trunks:
            costs = (trunk.macs, trunk.params)
            writer.writerow(["trunk", trunk.block, "", "", *costs, sizes[trunk.block]])
        for part in self.table.fixed_rows:
            writer.writerow(["fixed", part.name, "", "", part.macs, part.params, ""])
        return out.getvalue().rstrip("\n")

    # --- parts of the text ----------------------------------------------------------------------

    def _heading(self) -> str:
        splits = Counter(block.split for block in self.blocks)
        how = ", ".join(f"{count} {split}" for split, count in splits.items())
        counts = sorted(Counter(self.table.sizes).items())
        if len(counts) == 1:
            parts = f"each in {self.N} sub-blocks"
        else:
            parts = ", ".join(f"{blocks} in {N}" for N, blocks in counts) + " sub-blocks"
        if self.shared_norms:
            how += f"; {self.shared_norms} with one tail norm, shared"
        return f"{self.name}: {len(self.table.blocks)} blocks, {parts} ({how})"

    def _found(self, verbose: bool) -> str:
        converted = [block for block in self.found if block.name in self.table.blocks]
        lines = ["Blocks"]
        if verbose:
            mixed = self.N if isinstance(self.N, dict) else {}
            lines += [
                f"  {block}" + (f"  N={mixed[block.name]}" if mixed else "") for block in converted
            ]
        else:
            kinds = Counter((b.kind, b.shortcut) for b in converted)
            lines += [
                f"  {count:3} {kind}, {'no' if shortcut == 'none' else shortcut} shortcut"
                for (kind, shortcut), count in kinds.items()
            ]
        lines += [f"  left dense: {b.name}: {b.reason}" for b in self.left_dense]
        return "\n".join(lines)

    def _stages(self) -> str:
        lines: list[tuple[str, ...]] = [
            ("stage", "blocks", "sub-blocks", "output", "gated MACs", "of source", "params")
        ]
        names = dict(zip(self.table.blocks, self.table.stages, strict=True))
        for stage in sorted(set(names.values())):
            rows = [row for row in self.table.rows if names[row.block] == stage]
            trunks = [trunk for trunk in self.table.trunks if names[trunk.block] == stage]
            macs = sum(row.macs for row in rows) + sum(trunk.macs for trunk in trunks)
            params = sum(row.params for row in rows) + sum(trunk.params for trunk in trunks)
            size = "×".join(map(str, rows[-1].output_shape))
            blocks = len({row.block for row in rows})
            lines.append(
                self._line(str(stage + 1), str(blocks), str(len(rows)), size, macs, params)
            )
        fixed = self.table.fixed - self.table.controllers
        gated = sum(r.params for r in self.table.rows) + sum(t.params for t in self.table.trunks)
        params = self.table.params - gated
        lines.append(self._line("always runs", "", "", "", fixed, params))
        lines.append(
            self._line("controllers", "", "", "", self.table.controllers, self._controller_params())
        )
        return f"FLOPs table (in multiply-accumulates)\n{aligned(lines)}"

    def _line(
        self, stage: str, blocks: str, rows: str, size: str, macs: int, params: int
    ) -> tuple[str, ...]:
        share = f"{100 * macs / self.table.dense_total:.3g} %"
        return (stage, blocks, rows, size, f"{macs:,}", share, f"{params:,}")

    def _controller_params(self) -> int:
        return sum(p.numel() for block in self.blocks for p in block.controller.parameters())

    def _before_and_after(self) -> str:
        table = self.table
        dense = table.dense_total
        lines = [
            ("", "source", "converted", "ratio"),
            (
                "parameters",
                f"{table.dense_params / 1e6:.3f} M",
                f"{table.params / 1e6:.3f} M",
                f"{table.params / table.dense_params:.4f}",
            ),
            (
                "  with controllers",
                "",
                f"{(table.params + self._controller_params()) / 1e6:.3f} M",
                f"{(table.params + self._controller_params()) / table.dense_params:.4f}",
            ),
            ("MACs, all gates on", f"{dense / 1e6:,.1f} M", *self._macs(table.total)),
            ("MACs, all gates off", "", *self._macs(self.all_off)),
            ("  of these controllers", "", *self._macs(table.controllers)),
        ]
        note = (
            "A target r applies to the gated MACs; the whole network then runs at about "
            f"{table.fixed / dense:.3f} + {table.gated / dense:.3f} · r of the source's"
            + self._floor()
        )
        return f"{aligned(lines)}\n{note}"

    def _floor(self) -> str:
        kept = (self.all_off - self.table.fixed) / self.table.gated
        if not kept:
            return "."
        return f",\nand r cannot go below {kept:.3f}: blocks without a shortcut keep one sub-block."

    def _macs(self, macs: int) -> tuple[str, str]:
        ratio = macs / self.table.dense_total
        return f"{macs / 1e6:,.1f} M", f"{ratio:.4f}" if ratio > 0.001 else f"{100 * ratio:.4f} %"

    def _fidelity(self) -> str:
        approximate = self._approximate_paths()
        shown = sorted(approximate, key=lambda path: -self.errors[path])
        lines = [
            f"{_blocks(len(approximate))} split approximately; all gates on, outputs are off by "
            f"(relative, {self.measured_on}):"
        ]
        lines += [f"  {path or 'whole network'}: {100 * self.errors[path]:.1f} %" for path in shown]
        lines.append(f"  whole network's output: {100 * self.errors['']:.1f} %")
        lines.append(
            "Fine-tune to recover the accuracy, or keep every block's function with --split exact."
        )
        return "\n".join(lines)

    def _approximate_paths(self) -> list[str]:
        return [
            path.rpartition(".")[0]
            for path, module in self.model.named_modules()
            if isinstance(module, MultiPathBlock) and module.approximate
        ]


def _blocks(count: int) -> str:
    return "1 block is" if count == 1 else f"{count} blocks are"
