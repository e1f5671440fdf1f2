"""The end of a run at a non-finite loss or weight, before anything is saved."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import TrainingError

_REMEDY = "Start again with a lower --lr or --gate-lr, or with --clip-grad."


_EVERY = 20
"""Steps between two checks of the loss on an accelerator; each check waits for the device."""


class FiniteLoss:
    """Remembers, on the device, the first loss that is not finite, and raises when checked.

    Args:
        device: where losses lie.
    """

    def __init__(self, device: torch.device) -> None:
        self.every = 1 if device.type == "cpu" else _EVERY
        self.first: Tensor | None = None

    def see(self, loss: Tensor, epoch: int, step: int) -> None:
        """Take the loss of a step of an epoch, both counted from 0; check every few steps.

        Raises:
            TrainingError: if one was not finite.
        """
        loss = loss.detach().float()
        place = (torch.full_like(loss, float(n)) for n in (epoch, step))
        now = torch.stack([loss, *place])
        self.first = (
            now if self.first is None else torch.where(_finite(self.first), now, self.first)
        )
        if step % self.every == 0:
            self.check()

    def check(self) -> None:
        """Check the losses so far, which waits for the device.

        Raises:
            TrainingError: if one was not finite.
        """
        if self.first is None or _finite(self.first):
            return
        loss, epoch, step = self.first.tolist()
        raise TrainingError(
            f"the loss is {loss} at step {step:.0f} of epoch {epoch + 1:.0f}. {_REMEDY}"
        )


def _finite(seen: Tensor) -> Tensor:
    return torch.isfinite(seen[0])


def check_weights(model: nn.Module, when: str) -> None:
    """Check that no parameter and no norm's statistics are infinite or NaN, and no buffer NaN.

    Args:
        model: any network; other infinite buffers may be masks.
        when: place in the run, for the error.

    Raises:
        TrainingError: if one is.
    """
    sound = {name: torch.isfinite(p.detach()).all() for name, p in model.named_parameters()}
    for name, b in model.named_buffers():
        statistics = name.endswith(("running_mean", "running_var"))
        sound[name] = torch.isfinite(b).all() if statistics else ~torch.isnan(b).any()
    if not sound or torch.stack(list(sound.values())).all():
        return
    odd = [name for name, fine in sound.items() if not fine]
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    raise TrainingError(
        f"{', '.join(odd[:3])}{more}: no longer finite {when}; what was saved before stays. "
        f"{_REMEDY}"
    )
