"""The FLOPs table: the cost of every sub-block and of all parts that always run.

Costs are multiply-accumulates; one of them is one FLOP, as in the paper.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..dryrun import Cost, Shape, measure
from ..errors import ArgumentError, GateMismatchError
from ..foreign import parsed_json
from ..nn import NestedBlock, multi_path_blocks
from ..text import aligned, first_line
from .rows import FixedRow, Row, Trunk
from .tally import CONTROLLERS, SHARED, block_rows, count, dense_macs, fixed_rows, stage


@dataclass(frozen=True)
class FlopsTable:
    """The cost of every part of a converted model, in MACs of one image.

    Attributes:
        rows: one per sub-block, in gate order.
        trunks: shared trunks; a trunk runs if any sub-block of its block runs.
        fixed_rows: parts that always run: stem, shortcuts, head, and the controllers.
        dense_total: MACs of the source network.
        dense_params: parameters of the source network.
        input_size: shape of one image that the counts hold for.
        nested: blocks whose sub-blocks run only if those before them do; a row holds what the
            sub-block adds to those.

    Example:
        >>> table.total == table.fixed + table.gated
        True
        >>> table.network_flops(level_path(model, 0.5)[None]).item() < table.dense_total
        True
    """

    rows: tuple[Row, ...]
    trunks: tuple[Trunk, ...]
    fixed_rows: tuple[FixedRow, ...]
    dense_total: int
    dense_params: int
    input_size: Shape
    nested: tuple[str, ...] = ()

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks, in gate order."""
        return tuple(dict.fromkeys(row.block for row in self.rows))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of sub-blocks of each block."""
        return tuple(Counter(row.block for row in self.rows).values())

    @property
    def stages(self) -> tuple[int, ...]:
        """Stage of each block, from 0."""
        return tuple({row.block: row.stage for row in self.rows}.values())

    @property
    def fixed(self) -> int:
        """MACs of the parts that always run."""
        return sum(row.macs for row in self.fixed_rows)

    @property
    def gated(self) -> int:
        """MACs of all sub-blocks and trunks together."""
        return sum(row.macs for row in self.rows) + sum(trunk.macs for trunk in self.trunks)

    @property
    def total(self) -> int:
        """MACs of the network with all gates on."""
        return self.fixed + self.gated

    @property
    def controllers(self) -> int:
        """MACs of the gate controllers; part of `fixed`."""
        return sum(row.macs for row in self.fixed_rows if row.name == CONTROLLERS)

    @property
    def params(self) -> int:
        """Parameters of the converted network without its controllers."""
        parts: tuple[Any, ...] = (*self.rows, *self.trunks, *self.fixed_rows)
        return sum(p.params for p in parts if getattr(p, "name", "") != CONTROLLERS)

    def flops(self, gates: Tensor) -> Tensor:
        """Return the gated MACs of each image, (B,), for gates (B, total sub-blocks).

        Differentiable in the gates; float64 where the device has it, so that counts are exact.

        Raises:
            GateMismatchError: if the gates belong to another model.
        """
        gates = self._running(self._checked(gates))
        macs = torch.tensor([row.macs for row in self.rows], dtype=gates.dtype, device=gates.device)
        total = gates @ macs
        by_block = dict(zip(self.blocks, gates.split(self.sizes, dim=1), strict=True))
        for trunk in self.trunks:
            # 1 − Π (1 − g) is 1 where any gate is on, and has a gradient.
            total = total + trunk.macs * (1 - (1 - by_block[trunk.block]).prod(1))
        return total

    def network_flops(self, gates: Tensor) -> Tensor:
        """Return the whole network's MACs of each image, (B,); see `flops`."""
        return self.fixed + self.flops(gates)

    def recomputed(self, model: nn.Module, input_size: Sequence[int]) -> FlopsTable:
        """Return the table of the same converted model for images of another size.

        Raises:
            ArgumentError: if the model is not converted or does not run on that size.
        """
        try:
            cost = measure(model, tuple(input_size))
            return flops_table(model, tuple(input_size), self.blocks, self.dense_params, cost)
        except RuntimeError as error:
            raise ArgumentError(
                f"FlopsTable.recomputed(input_size={tuple(input_size)}): the model does not run on "
                f"one image of this shape: {first_line(error)}"
            ) from error

    def _checked(self, gates: Tensor) -> Tensor:
        if gates.dim() != 2 or gates.shape[1] != len(self.rows):
            raise GateMismatchError(
                f"FlopsTable: gates of shape {tuple(gates.shape)}, but the table has "
                f"{len(self.rows)} sub-blocks: give (B, {len(self.rows)}). Were they recorded on "
                "another model?"
            )
        return gates.to(torch.float32 if gates.device.type == "mps" else torch.float64)

    def _running(self, gates: Tensor) -> Tensor:
        """Return gates in which a nested sub-block is off if one before it is off."""
        if not self.nested:
            return gates
        parts = zip(self.blocks, gates.split(self.sizes, dim=1), strict=True)
        # Gates that are nested already stay as they are, and have a gradient each.
        return torch.cat([p.cummin(1).values if b in self.nested else p for b, p in parts], 1)

    def to_json(self) -> str:
        """Return the table as JSON text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> FlopsTable:
        """Rebuild a table from `to_json`'s text.

        Raises:
            ArgumentError: if the text is not such a table.
        """
        try:
            values = parsed_json(text)
            return cls(
                rows=tuple(Row(**_tuples(row)) for row in values["rows"]),
                trunks=tuple(Trunk(**trunk) for trunk in values["trunks"]),
                fixed_rows=tuple(FixedRow(**row) for row in values["fixed_rows"]),
                dense_total=int(values["dense_total"]),
                dense_params=int(values["dense_params"]),
                input_size=tuple(values["input_size"]),
                nested=tuple(values.get("nested", ())),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ArgumentError(
                f"FlopsTable.from_json: not a FLOPs table ({error}); give what to_json returned."
            ) from error

    def __str__(self) -> str:
        lines = [("block", "sub-block", "MACs", "params", "input", "output")]
        trunks = {trunk.block: trunk for trunk in self.trunks}
        for row in self.rows:
            if row.sub_block == 0 and row.block in trunks:
                trunk = trunks[row.block]
                lines.append((row.block, "trunk", f"{trunk.macs:,}", f"{trunk.params:,}", "", ""))
            shapes = (_shape(row.input_shape), _shape(row.output_shape))
            lines.append(
                (row.block, str(row.sub_block), f"{row.macs:,}", f"{row.params:,}", *shapes)
            )
        for part in self.fixed_rows:
            lines.append((part.name, "always", f"{part.macs:,}", f"{part.params:,}", "", ""))
        lines.append(("total", "all on", f"{self.total:,}", "", "", ""))
        lines.append(("source", "", f"{self.dense_total:,}", f"{self.dense_params:,}", "", ""))
        return aligned(lines)


def _shape(shape: Shape) -> str:
    return "×".join(map(str, shape))


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}


"""A part that runs if any sub-block of its block runs."""


def flops_table(
    model: nn.Module, input_size: Shape, names: Iterable[str], dense_params: int, cost: Cost
) -> FlopsTable:
    """Make the table of a converted model that costs `cost` for images of `input_size`."""
    macs, shapes = cost.macs, cost.shapes
    paths = {id(module): path for path, module in model.named_modules()}
    blocks, names = multi_path_blocks(model), tuple(names)
    rows: list[Row] = []
    trunks: list[Trunk] = []
    dense = 0
    for name, block in zip(names, blocks, strict=True):
        path = paths[id(block)]
        rows += block_rows(name, block, path, macs, shapes[path], stage(rows, shapes[path]))
        shared = {part: m for part in SHARED if (m := getattr(block, part)) is not None}
        if shared:
            together = sum(macs[f"{path}.{part}"] for part in shared)
            trunks.append(Trunk(name, together, sum(count(m) for m in shared.values())))
        dense += dense_macs(block, path, macs)
    gated = sum(r.macs for r in rows) + sum(t.macs for t in trunks)
    fixed = fixed_rows(model, macs, blocks, paths, macs[""] - gated)
    controllers = sum(r.macs for r in fixed if r.name == CONTROLLERS)
    return FlopsTable(
        rows=tuple(rows),
        trunks=tuple(trunks),
        fixed_rows=tuple(fixed),
        dense_total=macs[""] - gated - controllers + dense,
        dense_params=dense_params,
        input_size=tuple(input_size),
        nested=tuple(
            name
            for name, block in zip(names, blocks, strict=True)
            if isinstance(block, NestedBlock)
        ),
    )
