"""timm's optimisers, schedules and mixing, as a recipe asks for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..nn import gate_parameters
from ..optional import needed
from .recipe import Recipe


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Build timm's optimiser, with a group of its own for the gate controllers.

    Raises:
        ArgumentError: if timm does not know it.
    """
    gates = [] if recipe.dense else list(gate_parameters(model))
    gate_ids = {id(p) for p in gates}
    gates = [] if recipe.levels else gates  # nothing decides levels
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in gate_ids]
    # Norms and biases are left without decay, as timm does for whole models.
    decayed = [p for p in others if p.dim() > 1]
    plain = [p for p in others if p.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "lr": recipe.lr, "weight_decay": recipe.weight_decay},
        {"params": plain, "lr": recipe.lr, "weight_decay": 0.0},
    ]
    if gates:
        rate = recipe.lr if recipe.gate_lr is None else recipe.gate_lr
        groups.append({"params": gates, "lr": rate, "weight_decay": recipe.gate_weight_decay})
    try:
        optimizer: torch.optim.Optimizer = needed("timm.optim").create_optimizer_v2(
            groups, opt=recipe.opt, lr=recipe.lr, momentum=recipe.momentum
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise ArgumentError(f"Recipe(opt={recipe.opt!r}): timm has no such optimiser.") from error
    return optimizer


def make_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Any:
    """Build timm's learning-rate schedule, a function of the number of updates alone.

    Raises:
        ArgumentError: if timm does not know it, or it depends on results.
    """
    if recipe.sched == "plateau":
        raise ArgumentError("Recipe(sched='plateau'): depends on results; use cosine or multistep.")
    # A schedule that never changes is timm's "none", or one by steps without any.
    if recipe.sched == "none":
        raise ArgumentError(
            "Recipe(sched='none'): give multistep without milestones for a constant rate."
        )
    rising = min(recipe.warmup_epochs, recipe.epochs / 2)
    try:
        schedule, _ = needed("timm.scheduler").create_scheduler_v2(
            optimizer,
            sched=recipe.sched,
            num_epochs=recipe.epochs,
            decay_milestones=list(recipe.milestones),
            decay_epochs=recipe.milestones[0] if recipe.milestones else recipe.epochs,
            decay_rate=recipe.decay_rate,
            min_lr=recipe.min_lr,
            warmup_epochs=rising,
            warmup_lr=recipe.lr / 100 if rising else recipe.lr,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise _no_schedule(recipe, str(error)) from error
    if schedule is None:  # what older releases of timm return for a name that they do not know
        raise _no_schedule(recipe, "unknown")
    return schedule


def _no_schedule(recipe: Recipe, reason: str) -> ArgumentError:
    return ArgumentError(
        f"Recipe(sched={recipe.sched!r}): timm has no such schedule for this recipe ({reason}); "
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


def make_mixing(recipe: Recipe, classes: int) -> Mixing | None:
    """Build timm's mixup and CutMix; None where a recipe asks for neither."""
    if not (recipe.mixup or recipe.cutmix):
        return None
    mixup = needed("timm.data").Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        label_smoothing=0.0,  # the objective smooths, once
        num_classes=classes,
    )
    return Mixing(mixup, classes)


def amp_dtype(recipe: Recipe, device: torch.device) -> torch.dtype | None:
    """Return the dtype of mixed precision; None for none.

    Raises:
        ArgumentError: if the device has none.
    """
    if recipe.amp is None:
        return None
    if not torch.amp.is_autocast_available(device.type):
        raise ArgumentError(f"Recipe(amp={recipe.amp!r}): {device.type} has no mixed precision.")
    if recipe.amp == "fp16" and device.type == "cpu":
        raise ArgumentError("Recipe(amp='fp16'): needs a GPU; on the CPU use amp=bf16.")
    return torch.bfloat16 if recipe.amp == "bf16" else torch.float16
