"""The multi-path block: shortcut + Σ gate · sub-block, masked or skipping (eq. 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from ..errors import ArgumentError
from .controller import GateController, controllers
from .fused import gated_sum, times
from .gating import Context, Everyone, PerImage, Together, Values, context_of
from .parts import Parts


class SqueezingSubBlock(nn.Module):
    """A sub-block that waits, half-way, for a sum over all that run (squeeze-excite).

    Attributes:
        squeeze: from the block's input to the terms of the sum, and other inputs of `excite`.
        excite: from these and the block's `squeeze` of the sums to the sub-block's output.
        sums: how many of the first part's outputs are summed.
    """

    def __init__(self, squeeze: nn.Module, excite: nn.Module, sums: int) -> None:
        super().__init__()
        self.squeeze, self.excite, self.sums = squeeze, excite, sums


class MultiPathBlock(nn.Module):
    """Add the sub-blocks that the controller chooses for each image to the shortcut (eq. 4).

    Training computes every sub-block and multiplies it by its gate, which gives every parameter
    a gradient. Evaluation runs each image through its own sub-blocks only. Both give the same
    numbers.

    Attributes:
        controller: decides the gates.
        trunk: layers that the sub-blocks share; runs for images with any gate on. May be None.
        sub_blocks: the parts of the branch.
        squeeze: runs on the sums that the sub-blocks wait for half-way; None if they do not.
        shared_norm: the tail norm, if it runs once, on the gated sum; an image with all gates off
            then counts as zeros. None if every sub-block has its own.
        post: runs once on the gated sum (e.g. stochastic depth), after the norm. May be None.
        post_keeps_zeros: whether `post` maps zeros to zeros; if not, images with all gates off
            are masked after it, as they are with a shared norm.
        execution: "skip" or "masked"; which one evaluation uses.
        tail_norm: path of the tail norm in every sub-block, or in `shared_norm`; None without one.
        split: "hidden-channel", "shared-trunk", "matched-width", "own-squeeze" or "nested"; how the
            sub-blocks were made.
        dense_weights: per layer of a sub-block (by its path), how many weights its source has: the
            dense network's cost at any input size follows from it.
    """

    def __init__(
        self, controller: GateController, parts: Parts, split: str = "hidden-channel"
    ) -> None:
        super().__init__()
        self.controller = controller
        self.trunk = parts.trunk
        self.sub_blocks = nn.ModuleList(parts.sub_blocks)
        self.squeeze = parts.squeeze
        self.shared_norm = parts.shared_norm
        self.post = parts.post
        self.post_keeps_zeros = parts.post_keeps_zeros
        self.tail_norm = parts.tail_norm
        self.split = split
        self.dense_weights = dict(parts.dense_weights)
        self.execution = "skip"

    @property
    def approximate(self) -> bool:
        """Whether the block only approximates the source block, with all gates on."""
        return self.split in ("matched-width", "own-squeeze")

    def forward(self, x: Tensor, shortcut: Tensor | None = None, *context: int | Tensor) -> Tensor:
        """Return shortcut + Σ gate · sub-block of x (B, C, ...); without shortcut the sum alone.

        Args:
            x: the block's input, (B, C, ...) or (B, ..., C).
            shortcut: the value that the gated sum is added to.
            context: what else the layers need: conditions (B, C), such as a time embedding, and
                sizes of other values (of a map made into tokens).
        """
        if isinstance(x, fx.Proxy):
            return self._as_leaf(x, shortcut, *context)
        path = None if self._computes_all() else self.controller.path()
        if path is not None:
            return self._along(x, path, shortcut, context)
        gates = self.controller(x)
        # Choosing rows by value needs values; the masked form gives the same numbers.
        masked = self.training or not has_values(gates) or x.shape[0] == 0
        masked = masked or self._computes_all()
        form = "masked" if masked else self.execution
        return self._executed(form, x, gates, shortcut, context)

    def _along(
        self, x: Tensor, path: tuple[int, ...], shortcut: Tensor | None, context: Context
    ) -> Tensor:
        return along(self, x, path, shortcut, context)

    def _executed(
        self, execution: str, x: Tensor, gates: Tensor, shortcut: Tensor | None, context: Context
    ) -> Tensor:
        return EXECUTIONS[execution](self, x, gates, shortcut, context)

    def _computes_all(self) -> bool:
        """Return whether evaluation computes every sub-block, whatever the gates."""
        return not self.training and (
            self.execution == "masked" or self.controller.chain.current().masked
        )

    def _as_leaf(self, x: fx.Proxy, *rest: Any) -> Any:
        """Be one node in every torch.fx trace: gates need values, which a trace lacks."""
        path = x.tracer.path_of_module(self)  # type: ignore[attr-defined]
        return x.tracer.create_proxy("call_module", path, (x, *rest), {})

    def __prepare_scriptable__(self) -> NoReturn:
        raise ArgumentError(
            "torch.jit.script cannot read a converted model, whose gates are decided in Python; "
            "use torch.jit.trace(model, images) or torch.export.export(model, (images,)), which "
            "give the masked form."
        )

    def extra_repr(self) -> str:
        """Show how the sub-blocks were made and how evaluation runs."""
        return f"split={self.split!r}, execution={self.execution!r}"


def has_values(gates: Tensor) -> bool:
    """Return whether gates can be read: not while traced, vmapped, fake or on meta."""
    modes = torch._C._TorchDispatchModeKey
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.maybe_current_level() is not None
        or gates.is_meta
        or type(gates) is not Tensor
        or any(torch._C._get_dispatch_mode(key) for key in (modes.FAKE, modes.PROXY))
    )


def masked(
    block: MultiPathBlock, x: Tensor, gates: Tensor, shortcut: Tensor | None, context: Context = ()
) -> Tensor:
    """Compute every sub-block for every image and multiply by the gates (B, N)."""
    total = _normalised(block, _through_sub_blocks(block, x, Everyone(gates), context), context)
    if shortcut is None:
        return _ended(block, total, context)
    if block.shared_norm is None and block.post_keeps_zeros:
        return shortcut + _ended(block, total, context)
    # 1 − Π (1 − g) is 1 where any gate is on, and has a gradient.
    some = 1 - (1 - gates).prod(1)
    if not block.post_keeps_zeros:
        # The other images get ones, because zeros might be divided by zero, which no mask undoes.
        total = total + times(torch.ones_like(total), (some == 0).to(some.dtype))
    return shortcut + times(_ended(block, total, context), some)


def skipping(
    block: MultiPathBlock, x: Tensor, gates: Tensor, shortcut: Tensor | None, context: Context = ()
) -> Tensor:
    """Run each image through its own sub-blocks only: gather, run, scatter."""
    on = gates > 0.5
    rows = on.any(1).nonzero().squeeze(1)
    everyone = len(rows) == len(x)
    if (shortcut is None or len(shortcut) != len(x)) and not everyone:
        # One shortcut for the whole batch (its mean, say) has no rows to add to.
        return masked(block, x, gates, shortcut, context)
    if len(rows) == 0 and shortcut is not None:
        # A copy, because what follows may write in place and must not reach the block's input.
        return shortcut.clone()
    if everyone:
        total = _through_sub_blocks(block, x, PerImage(on), context)
    else:
        context = context_of(context, rows, len(x))
        total = _through_sub_blocks(block, x[rows], PerImage(on[rows]), context)
    total = _ended(block, _normalised(block, total, context), context)
    if shortcut is None:
        return total
    if everyone:
        return shortcut + total
    dtype = torch.result_type(shortcut, total)
    return shortcut.to(dtype).index_add(0, rows, total.to(dtype))


def along(
    block: MultiPathBlock,
    x: Tensor,
    path: tuple[int, ...],
    shortcut: Tensor | None,
    context: Context = (),
) -> Tensor:
    """Run all images through the same sub-blocks, and compute no others."""
    if not path and shortcut is not None:
        return shortcut.clone()
    total = _through_sub_blocks(block, x, Together(path), context)
    total = _ended(block, _normalised(block, total, context), context)
    return total if shortcut is None else shortcut + total


def _through_sub_blocks(
    block: MultiPathBlock, x: Tensor, gating: Everyone | Together | PerImage, context: Context
) -> Tensor:
    """Return Σ gate · sub-block of x (B, C, ...), before the shared norm and `post`."""
    inner = _as_tuple(x if block.trunk is None else block.trunk(x, *context))
    if block.squeeze is None:
        if gating.merges(training=block.training) and len(inner) == 1 and not context:
            running = [block.sub_blocks[n] for n in gating.running]
            total = gated_sum(running, inner[0], gating.gates)
            if total is not None:
                return total
        return gating.total(
            {
                n: block.sub_blocks[n](*gating.taken(n, inner), *gating.context(n, context))
                for n in gating.running
            }
        )
    halves = {
        n: _half(block, n, gating.taken(n, inner), gating.context(n, context))
        for n in gating.running
    }
    count = int(block.sub_blocks[0].sums)  # type: ignore[arg-type]
    sums = (gating.total({n: half[i] for n, half in halves.items()}) for i in range(count))
    squeezed = _as_tuple(block.squeeze(*sums, *inner, *context))
    return gating.total(
        {
            n: _other_half(
                block, n, (*half[count:], *gating.taken(n, squeezed)), gating.context(n, context)
            )
            for n, half in halves.items()
        }
    )


def _normalised(block: MultiPathBlock, total: Tensor, context: Context) -> Tensor:
    return total if block.shared_norm is None else block.shared_norm(total, *context)


def _ended(block: MultiPathBlock, total: Tensor, context: Context) -> Tensor:
    return total if block.post is None else block.post(total, *context)


def _half(block: MultiPathBlock, n: int, inner: Values, context: Context) -> Values:
    return _as_tuple(block.sub_blocks[n].squeeze(*inner, *context))  # type: ignore[operator]


def _other_half(block: MultiPathBlock, n: int, values: Values, context: Context) -> Tensor:
    return block.sub_blocks[n].excite(*values, *context)  # type: ignore[operator, no-any-return]


def _as_tuple(values: Any) -> Values:
    return values if isinstance(values, tuple) else (values,)


Execution = Callable[[MultiPathBlock, Tensor, Tensor, Tensor | None, Context], Tensor]


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

    Example:
        >>> skipping = model(images)
        >>> set_execution(model, "masked")
        >>> torch.allclose(model(images), skipping, atol=1e-5)
        True
    """
    if execution not in EXECUTIONS:
        raise ArgumentError(
            f"set_execution(execution={execution!r}): choose one of {sorted(EXECUTIONS)}."
        )
    for block in multi_path_blocks(model):
        block.execution = execution
