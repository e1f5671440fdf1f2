"""Batch-norm statistics after training, under the gates that the model has learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ArgumentError
from ..nn import check_own_statistics, in_evaluation
from .batches import batches_for
from .moments import Moments

COUNTED = {"all": "masked", "running": "skip"}
"""Which images count for a norm in a sub-block -> the execution that runs it on these."""


def reestimate_norms(
    model: nn.Module,
    loader: Iterable[Any],
    batches: int = 32,
    *,
    count: str = "all",
    progress: bool = False,
) -> None:
    """Estimate every batch norm's running mean and variance again, in place.

    Gates are those of evaluation, without noise, and dropout is off, but each norm divides by the
    batch's own statistics, as it did in training; the running ones become mean and variance of all
    its inputs. `torch.optim.swa_utils.update_bn` does this in training mode, with sampled gates and
    dropout, and averages batches as if all had the same number of images.
    Inside ``force_gates(model, True)`` it is an alternative to `reconstruct` right after an
    approximate conversion. It needs no source, but comes less close to it.

    In a distributed run every process must call it with its own share of the images. All processes
    end with the same model, fitted to the images of all of them.

    Args:
        model: a converted model.
        loader: yields images (B, C, H, W), or tuples or dicts with them; training images.
        batches: how many batches to look at.
        count: which images count for the norms inside a sub-block. "all": training computes every
            sub-block for every image, so its norms were trained with these; "running": only
            those for which the sub-block runs, which is a different function from the trained one.
            (`benchmarks/norm_statistics.py`, six networks: the test loss changed by -2 % with
            "all", the median, and by +17 % with "running".)
        progress: whether to show a bar.

    A norm with fewer than two input values, as in a sub-block that never runs ("running"), keeps
    its statistics. Nothing else changes, and nothing at all if an error is raised.

    Raises:
        ArgumentError: if the model is not converted, the loader is empty, or for another `count`.

    Example:
        >>> reestimate_norms(model, loader)  # under the learned gates, after training
        >>> with force_gates(model, True):  # right after an approximate conversion
        ...     reestimate_norms(model, loader)
    """
    if count not in COUNTED:
        raise ArgumentError(f"reestimate_norms(count={count!r}): choose one of {sorted(COUNTED)}.")
    check_own_statistics(model, "reestimate_norms")
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    moments = {norm: Moments(norm.num_features) for norm in norms}
    with in_evaluation(model, COUNTED[count]), by_batch(moments):
        for images in batches_for(model, loader, batches, "reestimate_norms", progress=progress):
            model(images)
    for moment in moments.values():
        moment.add_up()
    for norm, moment in moments.items():
        _set_statistics(norm, moment)


@contextmanager
def by_batch(moments: dict[_BatchNorm, Moments]) -> Iterator[None]:
    """Let norms divide by each batch's own statistics, and `moments` see their inputs."""

    def observe(moment: Moments, norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        moment.add(x)
        # One value has no variance, and PyTorch refuses it; it gets the running statistics.
        norm.training = x.numel() > x.shape[1]

    before = [(norm, norm.track_running_stats) for norm in moments]
    hooks = [n.register_forward_pre_hook(partial(observe, own)) for n, own in moments.items()]
    try:
        for norm in moments:
            norm.track_running_stats = False  # or each batch would move the running statistics
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm, tracked in before:
            norm.track_running_stats = tracked


def _set_statistics(norm: _BatchNorm, moment: Moments) -> None:
    if moment.count < 2 or norm.running_mean is None or norm.running_var is None:
        return
    mean, variance = statistics_of(moment)
    seen = moment.counts > 1
    with torch.no_grad():
        norm.running_mean.copy_(torch.where(seen, mean, norm.running_mean))
        norm.running_var.copy_(torch.where(seen, variance, norm.running_var))


def statistics_of(moment: Moments) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance, (C,) each; 0 and 1 for a channel without two values."""
    counts = moment.counts
    variance = moment.variance() * (counts / (counts - 1).clamp_min(1))
    return moment.mean(), torch.where(counts > 1, variance, 1)
