"""The ways of images through sub-blocks, and the sums of their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from torch import Tensor

from ..errors import ArgumentError
from .fused import weighted_sum

Values = tuple[Tensor, ...]
Context = tuple[int | Tensor, ...]
"""What a block reads besides its input: sizes, and conditions (B, C), or (1, C) for all images."""


def context_of(context: Context, rows: Tensor, batch: int) -> Context:
    """Return the context of some rows of a batch: these rows of conditions that have one each."""
    return tuple(value[rows] if _has_rows(value, batch) else value for value in context)


def _has_rows(value: int | Tensor, batch: int) -> TypeGuard[Tensor]:
    # A trace may hold sizes as tensors, which have no dimensions.
    return isinstance(value, Tensor) and value.dim() > 1 and len(value) == batch


class Everyone:
    """Every image runs through every sub-block, and gates (B, N) multiply the outputs."""

    gates: Tensor | None

    def __init__(self, gates: Tensor) -> None:
        self.gates = gates
        self.running: Sequence[int] = range(gates.shape[1])

    def merges(self, *, training: bool) -> bool:
        """Return whether sub-blocks may be computed together."""
        return training

    def taken(self, n: int, values: Values) -> Values:
        """Return the rows of values (B, ...) that sub-block `n` gets."""
        return values

    def context(self, n: int, values: Context) -> Context:
        """Return the context that sub-block `n` gets."""
        return values

    def total(self, outputs: dict[int, Tensor]) -> Tensor:
        """Return Σ gate · output, (B, ...), over the running sub-blocks."""
        if not outputs:
            raise ArgumentError("a MultiPathBlock needs at least one sub-block.")
        return weighted_sum(list(outputs.values()), self.gates)


class Together(Everyone):
    """Every image runs through the same sub-blocks, and through no others."""

    gates = None

    def __init__(self, path: tuple[int, ...]) -> None:
        self.running = path

    def merges(self, *, training: bool) -> bool:
        return True


class PerImage:
    """Each image runs through the sub-blocks that are on (B, N) for it, at least one."""

    gates = None

    def __init__(self, on: Tensor) -> None:
        self.batch = len(on)
        every = [on[:, n].nonzero().squeeze(1) for n in range(on.shape[1])]
        self.rows = {n: rows for n, rows in enumerate(every) if len(rows)}
        self.running = list(self.rows)

    def merges(self, *, training: bool) -> bool:
        return False

    def taken(self, n: int, values: Values) -> Values:
        rows = self.rows[n]
        return values if len(rows) == self.batch else tuple(v[rows] for v in values)

    def context(self, n: int, values: Context) -> Context:
        """Return the context that sub-block `n` gets."""
        rows = self.rows[n]
        return values if len(rows) == self.batch else context_of(values, rows, self.batch)

    def total(self, outputs: dict[int, Tensor]) -> Tensor:
        total: Tensor | None = None
        for n, y in outputs.items():
            rows = self.rows[n]
            everyone = len(rows) == self.batch
            if total is None:
                empty = None if everyone else y.new_zeros(self.batch, *y.shape[1:])
                total = y if empty is None else empty.index_add(0, rows, y)
            else:
                total = total + y if everyone else total.index_add(0, rows, y)
        if total is None:
            raise ArgumentError("skipping: at least one gate of each image must be on.")
        return total
