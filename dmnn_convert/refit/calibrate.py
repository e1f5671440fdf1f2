"""Tail-norm statistics with which training mode computes the same function as evaluation.

Right after conversion each sub-block's last norm holds the whole sum's variance and a share of its
mean, which is exact in evaluation. In training mode the norm divides by the sub-block's own
standard deviation instead. `calibrate` estimates those statistics on a few batches and rewrites
scale and shift so that both modes compute the same function.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..nn import MultiPathBlock, check_own_statistics, force_gates, in_evaluation, multi_path_blocks
from .batches import batches_for
from .moments import Moments


def calibrate(
    model: nn.Module, loader: Iterable[Any], batches: int = 8, *, progress: bool = False
) -> None:
    """Estimate each sub-block's tail-norm statistics and keep the function, in place.

    A block with one tail norm for all its sub-blocks (``tail_norm="shared"``) stays as it is: that
    norm holds the statistics of the gated sum already.

    In a distributed run every process must call it with its own share of the images. All processes
    end with the same model, fitted to the images of all of them.

    Args:
        model: a converted model.
        loader: yields images (B, C, H, W), or tuples or dicts with them; training images.
        batches: how many batches to look at.
        progress: whether to show a bar.

    Raises:
        ArgumentError: if the model is not converted, or the loader is empty.

    Example:
        >>> calibrate(model, loader)
    """
    check_own_statistics(model, "calibrate")
    norms = (norm for block in multi_path_blocks(model) for norm in tail_norms(block))
    moments = {norm: Moments(norm.num_features) for norm in norms}
    with in_evaluation(model, "masked"), _observed(moments), force_gates(model, True):
        for images in batches_for(model, loader, batches, "calibrate", progress=progress):
            model(images)
    for moment in moments.values():
        moment.add_up()
    for norm, moment in moments.items():
        _rewrite(norm, moment.mean(), moment.variance())


def tail_norms(block: MultiPathBlock) -> Iterator[_BatchNorm]:
    """Yield the tail norm of each sub-block, where it keeps statistics; none if one is shared."""
    if block.tail_norm is None or block.shared_norm is not None:
        return
    for sub_block in block.sub_blocks:
        norm = sub_block.get_submodule(block.tail_norm)
        if isinstance(norm, _BatchNorm) and norm.weight is not None:
            yield norm


@contextmanager
def _observed(moments: dict[_BatchNorm, Moments]) -> Iterator[None]:
    """Let `moments` see the inputs of the norms."""
    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs, moment=moment: moment.add(inputs[0]))
        for norm, moment in moments.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rewrite(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Give the norm these statistics and the same function: γ' and β' absorb the difference."""
    if norm.running_mean is None or norm.running_var is None:
        return
    old = (norm.running_var.double() + norm.eps).sqrt()
    new = (variance + norm.eps).sqrt()
    shift = norm.weight.double() * (mean - norm.running_mean.double()) / old
    with torch.no_grad():
        norm.bias.add_(shift.to(norm.bias.dtype))
        norm.weight.mul_((new / old).to(norm.weight.dtype))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
