"""Training for all levels at once: the sandwich rule with in-place distillation.

Every step runs three paths: all sub-blocks on, which learns from the labels; the lowest level; and
a random path. The last two learn from the answers of the first. (Yu and Huang,
Universally Slimmable Networks, ICCV 2019.)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..foreign import TakeLogits, logits_of
from ..nn import along_path, controllers, force_gates
from . import rows
from .level import check_levels, level_path, table_of


class LevelLosses(NamedTuple):
    """The losses that one step for all levels minimises.

    Attributes:
        total: the sum of the other losses, a scalar.
        all_on: the loss of all sub-blocks for the labels.
        lowest: the lowest level's divergence from the answers of all sub-blocks, nats per image.
        drawn: that of the path that was drawn.
        logits: (B, K) of all sub-blocks.
    """

    total: Tensor
    all_on: Tensor
    lowest: Tensor
    drawn: Tensor
    logits: Tensor


def level_losses(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    levels: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    *,
    step: int,
    seed: int = 0,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    logits: TakeLogits = None,
) -> LevelLosses:
    """Return the losses of one training step for all levels, with gradients.

    The random path depends only on (seed, step). So all processes of a distributed run train the
    same path, and a resumed run trains the path of the uninterrupted one. Batch norms divide by
    their batch's statistics. Only the pass with all sub-blocks updates the running ones; levels get
    their own statistics after training. (Checkpointing repeats passes in the backward pass, where
    lower paths do update them: call `reestimate_norms` with all gates forced on, after training.)

    Args:
        model: a converted model in training mode, which may be in DistributedDataParallel.
        images: (B, C, H, W).
        labels: as `criterion` takes them, such as classes (B,).
        levels: rising shares in (0, 1], the last one 1.
        step: number of this step.
        seed: of the draws.
        criterion: loss of logits and labels.
        logits: key or field of the logits in what the model returns, or a function that takes them
            out of it; None for logits as they are, or under "logits".

    Raises:
        ArgumentError: for levels that are not rising or end below 1, or that the model cannot make.

    Example:
        >>> optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
        >>> for step, (images, labels) in enumerate(loader):
        ...     losses = level_losses(model, images, labels, step=step)
        ...     optimizer.zero_grad()
        ...     losses.total.backward()
        ...     optimizer.step()
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    # Each pass has images of its own: a network may write into them.
    with force_gates(inner, True):
        whole = logits_of(model(rows.copied(images)), len(images), "level_losses", logits)
    all_on = criterion(whole.float(), labels)
    lowest, drawn = (
        divergence(inner, images, whole, path, logits)
        for path in step_paths(inner, levels, step, seed)
    )
    return LevelLosses(all_on + lowest + drawn, all_on, lowest, drawn, whole)


def step_paths(
    model: nn.Module, levels: Sequence[float], step: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the paths, (total sub-blocks,) each, that a step trains beside that of all sub-blocks.

    The first is the lowest level's. The second has a level drawn for the network, for each stage or
    for each block, in turn: draws only for each block would hardly ever give all blocks, or all
    blocks of a stage, the same level.

    Raises:
        ArgumentError: for levels that are not rising or end below 1, or that the model cannot make.
    """
    sizes = controllers(model)[0].chain.sizes
    check_levels(levels, sizes)
    draws = random.Random(f"{seed} {step}")
    groups = ((0,) * len(sizes), table_of(model, "level_losses").stages, tuple(range(len(sizes))))[
        step % 3
    ]
    drawn = {group: draws.choice(levels) for group in sorted(set(groups))}
    by_level = {level: level_path(model, level).split(sizes) for level in set(drawn.values())}
    path = torch.cat([by_level[drawn[group]][i] for i, group in enumerate(groups)])
    return level_path(model, levels[0]), path


def divergence(
    model: nn.Module, images: Tensor, logits: Tensor, path: Tensor, take: TakeLogits = None
) -> Tensor:
    """Return the distance of a path's answers from those that it learns from: nats per image.

    Args:
        model: a converted model.
        images: (B, C, H, W).
        logits: (B, K) that the path learns from; no gradient flows into them.
        path: (total sub-blocks,) zeros and ones.
        take: which part of the model's output is the logits, as in `level_losses`.
    """
    with along_path(model, path), untracked(model):
        answers = logits_of(model(rows.copied(images)), len(images), "divergence", take)
    soft, ours = (F.log_softmax(x.float(), -1) for x in (logits.detach(), answers))
    return F.kl_div(ours, soft, reduction="batchmean", log_target=True)


@contextmanager
def untracked(model: nn.Module) -> Iterator[None]:
    """Leave running statistics, and what else a pass writes into buffers, as they are.

    The pass has copies. Norms keep their mode, else checkpointing would repeat another pass.
    """
    every = [(m, k, b) for m in model.modules() for k, b in m._buffers.items() if b is not None]
    try:
        for module, name, buffer in every:
            module._buffers[name] = buffer.clone()
        yield
    finally:
        for module, name, buffer in every:
            module._buffers[name] = buffer
