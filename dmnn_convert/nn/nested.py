"""The nested block: a branch in which each image runs the first shares of all hidden channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .block import MultiPathBlock
from .controller import GateController
from .fused import times
from .gating import Context, context_of
from .gumbel import ones_of
from .narrow import narrowed
from .parts import NestedParts, Parts


class Shares(nn.Module):
    """Hidden channels before a layer that mixes them, with those that are off set to zero.

    Attributes:
        sizes: how many channels each sub-block adds.
        dim: the dimension they stand in.
    """

    def __init__(self, sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.sizes, self.dim = tuple(sizes), dim

    def forward(self, value: Tensor, gates: Tensor | None) -> Tensor:
        """Return a value with the channels of sub-blocks with a gate (B, N) of 0 set to zero.

        Without gates, all channels stay.
        """
        if gates is None:
            return value
        parts = zip(gates.to(value.dtype).unbind(1), self.sizes, strict=True)
        mask = torch.cat([gate[:, None].expand(-1, size) for gate, size in parts], 1)
        places = [1] * value.dim()
        places[0], places[self.dim] = -1, sum(self.sizes)  # an export would freeze the batch's size
        return value * mask.view(places)

    def extra_repr(self) -> str:
        """Show the shares."""
        return f"{self.sizes}, dim={self.dim}"


class NestedBlock(MultiPathBlock):
    """A branch in which sub-block n adds the n-th share of the channels of every hidden width.

    A sub-block reads the outputs of those before it, and so runs only if these do: an image's path
    is the number of sub-blocks that run. With none, the branch is skipped. Evaluation, and training
    along a path, run narrower layers. Training with gates runs the dense branch, in which the
    layers that mix hidden channels see zeros for those that are off.

    Attributes:
        body: the branch, from the block's input to the value added to the shortcut.
        ends: where the layers of the body are cut, by their paths in it.
    """

    def __init__(self, controller: GateController, parts: NestedParts) -> None:
        super().__init__(controller, Parts(()), "nested")
        self.body = parts.body
        self.ends = dict(parts.ends)

    def first(self, k: int) -> nn.Module:
        """Return the body of the first `k` sub-blocks, from 1; its tensors are views."""
        return self.body if k == self.controller.N else narrowed(self.body, self.ends, k)

    def _along(
        self, x: Tensor, path: tuple[int, ...], shortcut: Tensor | None, context: Context
    ) -> Tensor:
        N = self.controller.N
        k = prefix(path, keep_one=self.controller.keep_one)
        if (k < N and torch.compiler.is_compiling()) or (k == 0 and _broadcasts(shortcut, x)):
            gates = torch.tensor([float(n < k) for n in range(N)], device=x.device)
            return self._masked(x, gates.expand(len(x), -1), shortcut, context)
        return self._through(x, k, shortcut, context)

    def _executed(
        self, execution: str, x: Tensor, gates: Tensor, shortcut: Tensor | None, context: Context
    ) -> Tensor:
        run = self._masked if execution == "masked" else self._skipping
        return run(x, gates, shortcut, context)

    def _masked(
        self, x: Tensor, gates: Tensor, shortcut: Tensor | None, context: Context
    ) -> Tensor:
        """Run the whole branch for every image, on zeros for the channels that are off."""
        # The first share always runs, because a branch without channels might divide by zero.
        first, others = gates[:, :1], gates[:, 1:]
        total: Tensor = self.body(x, *context, torch.cat([ones_of(first), others], 1))
        return total if shortcut is None else shortcut + times(total, gates[:, 0])

    def _skipping(
        self, x: Tensor, gates: Tensor, shortcut: Tensor | None, context: Context
    ) -> Tensor:
        """Run the images that have as many sub-blocks on together: gather, run, scatter."""
        counts = (gates > 0.5).sum(1)
        running = sorted(set(counts.tolist()))
        if len(running) > 1 and _broadcasts(shortcut, x):
            return self._masked(x, gates, shortcut, context)
        if len(running) == 1:
            return self._along(x, tuple(range(running[0])), shortcut, context)
        groups = {k: (counts == k).nonzero().squeeze(1) for k in running if k}
        outputs = {
            k: self._through(x[rows], k, None, context_of(context, rows, len(x)))
            for k, rows in groups.items()
        }
        like = outputs[running[-1]]
        total = like.new_zeros(len(x), *like.shape[1:])
        for k, rows in groups.items():
            total = total.index_copy(0, rows, outputs[k])
        return total if shortcut is None else shortcut + total

    def _through(self, x: Tensor, k: int, shortcut: Tensor | None, context: Context) -> Tensor:
        """Run all images through the first `k` sub-blocks."""
        if k == 0 and shortcut is not None:
            # A copy, because what follows may write in place and must not reach the block's input.
            return shortcut.clone()
        total: Tensor = self.first(k)(x, *context, None)
        return total if shortcut is None else shortcut + total


def prefix(path: Sequence[int], *, keep_one: bool) -> int:
    """Return the number of nested sub-blocks that run of those that a path turns on.

    Gates after a gap are ignored. Where one has to run, the first does, whatever its gate.
    """
    on = {*path, 0} if keep_one else set(path)
    return next(n for n in range(len(on) + 1) if n not in on)


def _broadcasts(shortcut: Tensor | None, x: Tensor) -> bool:
    """Return whether a shortcut has other rows than the batch (its mean, say)."""
    return shortcut is not None and len(shortcut) != len(x)
