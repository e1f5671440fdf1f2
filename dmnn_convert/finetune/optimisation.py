"""timm's optimisers, schedules and mixing, and mixed precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..nn import parameter_groups
from ..optional import needed
from .option_groups import OptimisationOptions


def make_optimizer(options: OptimisationOptions, model: nn.Module) -> torch.optim.Optimizer:
    """Build timm's optimiser for the parameters that require a gradient, controllers last.

    Raises:
        ArgumentError: if timm does not know it.
    """
    groups = parameter_groups(
        model,
        weight_decay=options.weight_decay,
        lr=options.lr,
        gate_lr=options.gate_lr,
        gate_weight_decay=options.gate_weight_decay,
    )
    try:
        optimizer: torch.optim.Optimizer = needed("timm.optim").create_optimizer_v2(
            groups, opt=options.opt, lr=options.lr, momentum=options.momentum
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise ArgumentError(f"{options.call('opt')}: timm has no such optimiser.") from error
    return optimizer


def make_schedule(
    options: OptimisationOptions, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> Any:
    """Build timm's learning-rate schedule, a function of the number of updates alone.

    Raises:
        ArgumentError: if timm does not know it, or it depends on results.
    """
    if options.sched == "plateau":
        raise ArgumentError(
            f"{options.call('sched')}: depends on results; use cosine or multistep."
        )
    # A schedule that never changes is timm's "none", or one by steps without any.
    if options.sched == "none":
        raise ArgumentError(
            f"{options.call('sched')}: give multistep without milestones for a constant rate."
        )
    length = options.length(steps_per_epoch)
    rising = min(options.warmup_epochs, length / 2)
    try:
        schedule, _ = needed("timm.scheduler").create_scheduler_v2(
            optimizer,
            sched=options.sched,
            num_epochs=length,
            decay_milestones=list(options.milestones),
            decay_epochs=options.milestones[0] if options.milestones else length,
            decay_rate=options.decay_rate,
            min_lr=options.min_lr,
            warmup_epochs=rising,
            warmup_lr=options.lr / 100 if rising else options.lr,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise _no_schedule(options, str(error)) from error
    if schedule is None:  # older releases of timm return this for an unknown name
        raise _no_schedule(options, "unknown")
    return schedule


def _no_schedule(options: OptimisationOptions, reason: str) -> ArgumentError:
    return ArgumentError(
        f"{options.call('sched')}: timm has no such schedule for this recipe ({reason}); "
        "give cosine, multistep, step or poly."
    )


class Mixing:
    """timm's mixup and CutMix, for any number of images.

    Args:
        mixup: timm's, which takes images in pairs.
        classes: how many there are.
    """

    def __init__(self, mixup: Any, classes: int) -> None:
        self.mixup, self.classes = mixup, classes

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images (B, C, H, W) and labels (B,); of an odd number the last stays as it is.

        Returns:
            Images of the same shape, and targets (B, classes).
        """
        even = len(images) // 2 * 2
        # one_hot would look at the labels first, for which the host has to wait.
        targets = images.new_zeros(len(labels), self.classes).scatter_(1, labels[:, None], 1.0)
        if even:
            mixed, of_mixed = self.mixup(images[:even], labels[:even])
            images = torch.cat([mixed, images[even:]])
            targets = torch.cat([of_mixed.to(targets.dtype), targets[even:]])
        return images, targets


def make_mixing(options: OptimisationOptions, classes: int) -> Mixing | None:
    """Build timm's mixup and CutMix; None if neither is used."""
    if not (options.mixup or options.cutmix):
        return None
    mixup = needed("timm.data").Mixup(
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        label_smoothing=0.0,  # the objective smooths, once
        num_classes=classes,
    )
    return Mixing(mixup, classes)


def amp_dtype(options: OptimisationOptions, device: torch.device) -> torch.dtype | None:
    """Return the dtype of mixed precision; None for none.

    Raises:
        ArgumentError: if the device has none.
    """
    if options.amp is None:
        return None
    if not torch.amp.is_autocast_available(device.type):
        raise ArgumentError(f"{options.call('amp')}: {device.type} has no mixed precision.")
    if options.amp == "fp16" and device.type == "cpu":
        raise ArgumentError(f"{options.call('amp')}: needs a GPU; on the CPU use amp=bf16.")
    return torch.bfloat16 if options.amp == "bf16" else torch.float16


def slow_amp(options: OptimisationOptions, device: torch.device) -> str | None:
    """Return what to say of mixed precision that takes longer than none; None if there is none.

    Without AVX-512, PyTorch emulates bf16 on x86 processors: a step takes four to five times as
    long as in float32.
    """
    emulated = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2")
    if options.amp != "bf16" or device.type != "cpu" or not emulated:
        return None
    return (
        f"{options.call('amp')}: this processor has no bf16 arithmetic, and emulating it takes "
        "several times as long; leave mixed precision out."
    )
