"""The gradient mode, autocast and hooks on saved tensors under which parts of a forward run.

A graph shows neither ``with`` blocks nor decorators. Both take effect while a trace is taken, so a
node that is made under another state than its forward began in reveals one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from .libraries import is_library_name


class Ambient(NamedTuple):
    """The modes that surround a piece of code."""

    gradients: bool
    inference: bool
    autocasts: int
    hooks: tuple[Any, ...] | None

    def surrounding(self, inner: Ambient) -> str | None:
        """Return why code that runs in `inner` cannot move to where this holds; None if it can."""
        if inner == self:
            return None
        if inner.autocasts != self.autocasts:
            used = "torch.autocast"
        elif inner.inference != self.inference:
            used = "torch.inference_mode"
        elif inner.hooks != self.hooks:
            used = "saved_tensors_hooks"
        else:
            used = "torch.enable_grad()" if inner.gradients else "torch.no_grad()"
        return lost(used)


def lost(used: str) -> str:
    """Return the reason that something which surrounds a part of a forward would be lost."""
    return f"its forward runs a part under {used}, which a new forward would not"


def ambient() -> Ambient:
    """Return the modes that surround the calling code."""
    autocasts = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return Ambient(*modes, autocasts, _saved_tensors_hooks())


def _saved_tensors_hooks() -> tuple[Any, ...] | None:
    """Return the hooks of the user's that change what backward passes read, if there are any.

    PyTorch's own, of checkpointing and of `save_on_cpu`, give back the same values.
    """
    hooks: tuple[Any, ...] | None = torch._C._autograd._top_saved_tensors_default_hooks(False)
    theirs = all(is_library_name(getattr(hook, "__module__", "")) for hook in hooks or ())
    return None if theirs else hooks


@contextmanager
def ordinary(*, gradients: bool) -> Iterator[None]:
    """Leave inference mode, and switch gradients on or off, whatever the caller has."""
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        yield
