"""A block as several paths: shortcut + Σ gate · sub-block, masked or skipping (eq. 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .errors import ArgumentError
from .gate import GateController, controllers


class MultiPathBlock(nn.Module):
    """Add the sub-blocks that the controller chooses for each image to the shortcut (eq. 4).

    Training computes every sub-block and multiplies it by its gate, so that every parameter gets
    a gradient. Evaluation runs each image through its own sub-blocks only. Both give the same
    numbers.

    Attributes:
        controller: decides the gates.
        trunk: layers that the sub-blocks share; runs for images with any gate on. May be None.
        sub_blocks: the parts of the branch.
        post: runs once on the gated sum, maps zeros to zeros (e.g. stochastic depth). May be None.
        execution: "skip" or "masked"; which one evaluation uses.
        tail_norm: path, in every sub-block, of the norm that was shared out; None without one.
        split: "hidden-channel", "matched-width" or "shared-trunk"; how the sub-blocks were made.
        dense_weights: per convolution of the trunk or of a sub-block (by path), how many weights
            its source has: the dense network's cost at any input size follows from it.
    """

    def __init__(
        self,
        controller: GateController,
        sub_blocks: Sequence[nn.Module],
        trunk: nn.Module | None = None,
        post: nn.Module | None = None,
        tail_norm: str | None = None,
        split: str = "hidden-channel",
        dense_weights: dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.controller = controller
        self.trunk = trunk
        self.sub_blocks = nn.ModuleList(sub_blocks)
        self.post = post
        self.tail_norm = tail_norm
        self.split = split
        self.dense_weights = dense_weights or {}
        self.execution = "skip"

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Return shortcut + Σ gate · sub-block of x (B, C, ...); without shortcut the sum alone."""
        gates = self.controller(x)
        # Choosing rows by value cannot be traced; the masked form gives the same numbers.
        following = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
        masked = self.training or following or x.shape[0] == 0
        execute = EXECUTIONS["masked" if masked else self.execution]
        return execute(self, x, gates, shortcut)

    def extra_repr(self) -> str:
        """Show how the sub-blocks were made and how evaluation runs."""
        return f"split={self.split!r}, execution={self.execution!r}"


def masked(block: MultiPathBlock, x: Tensor, gates: Tensor, shortcut: Tensor | None) -> Tensor:
    """Compute every sub-block for every image and multiply by the gates (B, N)."""
    inner = x if block.trunk is None else block.trunk(x)
    total: Tensor | None = None
    for n, sub_block in enumerate(block.sub_blocks):
        y = sub_block(inner)
        y = y * gates[:, n].to(y.dtype).view(-1, *(1,) * (y.dim() - 1))
        total = y if total is None else total + y
    if total is None:
        raise ArgumentError("a MultiPathBlock needs at least one sub-block.")
    if block.post is not None:
        total = block.post(total)
    return total if shortcut is None else shortcut + total


def skipping(block: MultiPathBlock, x: Tensor, gates: Tensor, shortcut: Tensor | None) -> Tensor:
    """Run each image through its own sub-blocks only: gather, run, scatter."""
    on = gates > 0.5
    rows = on.any(1).nonzero().squeeze(1)
    everyone = len(rows) == len(x)
    if shortcut is None and not everyone:
        return masked(block, x, gates, shortcut)
    if len(rows) == 0 and shortcut is not None:
        # A copy, because what follows may write in place and must not reach the block's input.
        return shortcut.clone()
    inner = x if everyone else x[rows]
    total = _gated_sum(block, inner, on if everyone else on[rows])
    if shortcut is None:
        return total
    if everyone:
        return shortcut + total
    dtype = torch.result_type(shortcut, total)
    return shortcut.to(dtype).index_add(0, rows, total.to(dtype))


def _gated_sum(block: MultiPathBlock, x: Tensor, on: Tensor) -> Tensor:
    """Return post(Σ gate · sub-block) for images (B, C, ...) that each have a gate on."""
    inner = x if block.trunk is None else block.trunk(x)
    total: Tensor | None = None
    for n, sub_block in enumerate(block.sub_blocks):
        rows = on[:, n].nonzero().squeeze(1)
        if len(rows) == 0:
            continue
        everyone = len(rows) == len(x)
        y = sub_block(inner if everyone else inner[rows])
        if total is None:
            total = y if everyone else y.new_zeros(len(x), *y.shape[1:]).index_add(0, rows, y)
        else:
            total = total + y if everyone else total.index_add(0, rows, y)
    if total is None:
        raise ArgumentError("skipping: at least one gate of each image must be on.")
    return total if block.post is None else block.post(total)


Execution = Callable[[MultiPathBlock, Tensor, Tensor, Tensor | None], Tensor]

EXECUTIONS: dict[str, Execution] = {"masked": masked, "skip": skipping}
"""The forms of execution by name; a faster one plugs in here."""


def multi_path_blocks(model: nn.Module) -> list[MultiPathBlock]:
    """Return the model's multi-path blocks in execution order.

    Raises:
        ArgumentError: if the model is not converted.
    """
    controllers(model)
    blocks = [m for m in model.modules() if isinstance(m, MultiPathBlock)]
    return sorted(blocks, key=lambda block: block.controller.position)


def set_execution(model: nn.Module, execution: str) -> None:
    """Choose how evaluation runs: "skip" (saves work) or "masked" (computes everything).

    Raises:
        ArgumentError: for another name, or a model that is not converted.
    """
    if execution not in EXECUTIONS:
        raise ArgumentError(
            f"set_execution(execution={execution!r}): choose one of {sorted(EXECUTIONS)}."
        )
    for block in multi_path_blocks(model):
        block.execution = execution
