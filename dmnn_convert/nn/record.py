"""Records of the paths that images take: ``with record_paths(model) as paths: model(images)``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import RecordingError
from .controller import controllers
from .conversion import CostTable, conversion_within


class Paths:
    """The gates of the forward passes that ran while recording, batches one after another.

    Attributes:
        sizes: number of sub-blocks of each block, in gate order.
        table: the model's FLOPs table; None where it was not converted as a whole.
    """

    def __init__(self, sizes: tuple[int, ...], table: CostTable | None) -> None:
        self.sizes, self.table = sizes, table
        self._gates: list[list[Tensor]] = [[] for _ in sizes]
        self._logits: list[list[Tensor]] = [[] for _ in sizes]
        self._categories: list[list[Tensor]] = [[] for _ in sizes]

    def add(
        self,
        position: int,
        gates: Tensor,
        category_logits: Tensor | None,
        gate_logits: Tensor | None = None,
    ) -> None:
        """Take the decision of the controller at `position`; called by the controllers."""
        self._gates[position].append(gates)
        if gate_logits is not None:
            self._logits[position].append(gate_logits)
        if category_logits is not None:
            self._categories[position].append(category_logits)

    @property
    def gates(self) -> Tensor:
        """Gates of all images, (B, total sub-blocks): exact zeros and ones.

        Raises:
            RecordingError: if no forward pass ran, or one did not reach every block.
        """
        return torch.cat(self._by_block(self._gates, "gates"), dim=1)

    @property
    def gate_logits(self) -> tuple[Tensor, ...]:
        """Gate logits (B, N, 2) of each block, the last dimension being (off, on).

        Raises:
            RecordingError: if no forward pass ran, or one did not reach every block.
        """
        return tuple(self._by_block(self._logits, "gate logits"))

    @property
    def category_logits(self) -> tuple[Tensor, ...]:
        """Category logits (B, K) of each block, in training with category heads.

        Raises:
            RecordingError: if the model has no category heads or was not in training mode.
        """
        return tuple(self._by_block(self._categories, "category logits"))

    def execution_rates(self) -> Tensor:
        """Return each block's execution rate z_l, (L,), differentiable (eq. 11)."""
        parts = self.gates.split(self.sizes, dim=1)
        return torch.stack([part.mean() for part in parts])

    def flops_ratio(self) -> Tensor:
        """Return the mean gated FLOPs over those with all gates on, a differentiable scalar.

        Raises:
            RecordingError: if the recorded model has no FLOPs table of its own.
        """
        table = self._own_table()
        return (table.flops(self.gates).mean() / table.gated).to(self.gates.dtype)

    def network_flops_ratio(self) -> Tensor:
        """Return the mean FLOPs of the whole network over the source's, a differentiable scalar.

        Raises:
            RecordingError: if the recorded model has no FLOPs table of its own.
        """
        table = self._own_table()
        return (table.network_flops(self.gates).mean() / table.dense_total).to(self.gates.dtype)

    def _own_table(self) -> CostTable:
        if self.table is None:
            raise RecordingError(
                "Paths: the recorded module carries no FLOPs table (a part of a converted model?). "
                "Use the table that dynamize returned: table.flops(paths.gates)."
            )
        return self.table

    def _by_block(self, recorded: list[list[Tensor]], what: str) -> list[Tensor]:
        counts = {len(batches) for batches in recorded}
        if counts == {0}:
            raise RecordingError(
                f"Paths: no {what} recorded. Run a forward pass inside `with record_paths(model)`, "
                "in the same thread or task; category logits also need num_categories= and "
                "training mode."
            )
        if len(counts) > 1:
            raise RecordingError(
                f"Paths: a forward pass did not reach every block, so its {what} are incomplete."
            )
        return [torch.cat(batches) for batches in recorded]


@contextmanager
def record_paths(model: nn.Module) -> Iterator[Paths]:
    """Record the gates of the forward passes that this thread or task runs inside the block.

    If recorders are nested, only the innermost sees a pass. In a generator, a recorder sees the
    passes of the generator, not those of its caller.

    Args:
        model: a converted model, or anything that contains one (a detector, a DDP wrapper).

    Raises:
        ArgumentError: if it contains no converted model, or two.

    Example:
        >>> with record_paths(model) as paths:
        ...     logits = model(images)
        >>> paths.gates.shape  # images, sub-blocks of all blocks
        torch.Size([32, 8])
    """
    chain = controllers(model)[0].chain
    conversion = conversion_within(model)
    paths = Paths(chain.sizes, conversion and conversion.table)
    with chain.recording(paths):
        yield paths
