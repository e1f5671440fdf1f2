"""Gated networks whose gates are branches: a graph that engines can follow, for one image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError
from ..frozen import plain_block
from ..graph import copied
from ..nn import (
    GateController,
    MultiPathBlock,
    NestedBlock,
    multi_path_blocks,
    strip_category_heads,
)
from ..runtime import folded, is_foldable
from .checks import check_evaluation

MOST = 4
"""Most sub-blocks whose every subset gets layers of its own: 2^(N-1) times the block's."""

MERGED, APART = "merged", "apart"


class PlainGates(nn.Module):
    """A controller's decisions in a few plain operations, its norms folded in."""

    def __init__(self, controller: GateController) -> None:
        super().__init__()
        self.chain, self.position = controller.chain, controller.position
        self.keep_one, self.channel_dim = controller.keep_one, controller.channel_dim
        weights = folded(controller)
        for name in ("w1", "b1", "w2", "w3", "b3"):
            self.register_buffer(name, getattr(weights, name))

    w1: Tensor
    b1: Tensor | None
    w2: Tensor | None
    w3: Tensor
    b3: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return which sub-blocks run, (N,) bool, for one image x (1, C, ...) or (1, ..., C)."""
        first = 2 if self.channel_dim == 1 else 1
        places = list(range(first, first + x.dim() - 2))
        hidden = (x.float().mean(places) if places else x.float()) @ self.w1
        hidden = F.relu(hidden if self.b1 is None else hidden + self.b1)
        before = self.chain.take(self.position)
        if self.w2 is not None and before is not None:
            hidden = hidden + F.relu(before @ self.w2)
        self.chain.put(self.position, hidden)
        margins = (hidden @ self.w3 + self.b3)[0]
        on = margins > 0
        if not self.keep_one:
            return on
        best = torch.arange(len(self.b3), device=x.device) == margins.argmax()
        return on | best


class BranchingBlock(nn.Module):
    """A block whose controller's gates choose between branches, by `torch.cond`.

    Attributes:
        gates: the controller's decisions.
        subsets: by key (a bit for each sub-block), what its sub-blocks add to the shortcut.
        apart: whether each sub-block has a branch of its own, and not each subset.
    """

    def __init__(self, block: MultiPathBlock, *, apart: bool) -> None:
        super().__init__()
        self.gates = PlainGates(block.controller)
        self.N, self.has_shortcut = block.controller.N, not block.controller.keep_one
        self.apart = apart
        keys = [1 << n for n in range(self.N)] if apart else list(range(1, 2**self.N))
        self.subsets = nn.ModuleDict(
            {str(k): plain_block(block, [n for n in range(self.N) if k >> n & 1]) for k in keys}
        )

    def forward(self, x: Tensor, shortcut: Tensor | None = None, *context: int | Tensor) -> Tensor:
        """Return shortcut + Σ gate · sub-block of x, one image (1, C, H, W)."""
        if context:
            raise ArgumentError(
                "a gated export: a block that reads more than its input (a condition, sizes of a "
                "map made into tokens) has no branches in an engine; deploy a level or a cascade."
            )
        on = self.gates(x)
        values = (x,) if shortcut is None else (x, shortcut)
        if not self.apart:
            return self._subset(0, 0)(on, *values)  # type: ignore[no-any-return]
        for n in range(self.N):
            add = self.subsets[str(1 << n)]
            values = (x, torch.cond(on[n], add.forward, _handed_on, values))
        return values[-1]

    def _subset(self, n: int, key: int) -> Callable[..., Any]:
        """Return the output for the gates from the n-th on, if those before chose this key."""
        if n == self.N:
            if key == 0:
                return lambda on, x, shortcut: _handed_on(x, shortcut)
            leaf = self.subsets[str(key)]
            return lambda on, *values: leaf(*values)
        with_it = self._subset(n + 1, key | 1 << n)
        if n == self.N - 1 and key == 0 and not self.has_shortcut:
            return with_it  # one always runs
        without = self._subset(n + 1, key)
        return lambda on, *values: torch.cond(on[n], with_it, without, (on, *values))


def _handed_on(x: Tensor, shortcut: Tensor) -> Tensor:
    return shortcut.clone()  # a branch must not return one of its inputs


def branching(model: nn.Module, form: str = MERGED) -> nn.Module:
    """Return a converted model whose blocks branch by their gates, for one image at a time.

    Args:
        model: in evaluation; it stays as it is.
        form: "merged", a branch for each subset of a block's sub-blocks, as one of their joint
            width; or "apart", a branch for each sub-block, where a block allows it: others branch
            by subset all the same.

    Raises:
        ArgumentError: for a model that is not converted or in training mode, or more than four
            sub-blocks a block that cannot run apart.
    """
    check_evaluation(model, f"branching({type(model).__name__})")
    if form not in (MERGED, APART):
        raise ArgumentError(f"branching(form={form!r}): choose {MERGED} or {APART}.")
    own = copied(model).requires_grad_(False)
    strip_category_heads(own)
    blocks = multi_path_blocks(own)
    names = {id(module): name for name, module in own.named_modules()}
    for block in blocks:
        name = names[id(block)]
        if not is_foldable(block.controller):
            raise ArgumentError(
                f"branching: the controller of {name} has layers that are more than their weights "
                "(hooks, adapters, pruning); merge these, or deploy a level or a cascade."
            )
        apart = form == APART and can_run_apart(block)
        if not apart and block.controller.N > MOST:
            raise ArgumentError(
                f"branching: {name} has {block.controller.N} sub-blocks, and {MOST} are the most "
                "whose subsets are exported; deploy a level or a cascade, or convert with a "
                "smaller N."
            )
        parent, _, child = name.rpartition(".")
        setattr(own.get_submodule(parent), child, BranchingBlock(block, apart=apart))
    return own


def can_run_apart(block: MultiPathBlock) -> bool:
    """Return whether a block's sub-blocks have nothing in common but their input and their sum."""
    if isinstance(block, NestedBlock):
        return False  # each reads what those before it made
    common = (block.trunk, block.squeeze, block.shared_norm, block.post)
    return not block.controller.keep_one and all(part is None for part in common)
