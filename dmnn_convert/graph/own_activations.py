"""Activations of the user's own that save memory: autograd Functions with values that are known.

A trace cannot follow an autograd Function, whose backward pass is written by hand. The module that
calls one is left whole, so that this backward pass is used, and counts as the activation that its
values are those of.
"""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

_KNOWN = {nn.SiLU: F.silu, nn.Mish: F.mish}


def activation_behind(module: nn.Module) -> type[nn.Module] | None:
    """Return the activation that a module's autograd Function amounts to; None for all else."""
    if module._parameters or module._buffers or module._modules or not _applies(module):
        return None
    bounds = torch.linspace(-30, 30, 61, dtype=torch.float64)
    x = bounds.repeat(2).view(2, 1, 61).requires_grad_()
    try:
        with torch.enable_grad():
            y = type(module).forward(module, x)
    except Exception:  # whatever a forward raises on three dimensions
        return None
    if not isinstance(y, Tensor) or not isinstance(y.grad_fn, BackwardCFunction):
        return None
    reads = [function for function, _ in y.grad_fn.next_functions]
    alone = [getattr(function, "variable", None) is x for function in reads] == [True]
    if not alone or not torch.equal(x.detach()[0, 0], bounds):
        return None
    return next((base for base, known in _KNOWN.items() if torch.allclose(y, known(x))), None)


def _applies(module: nn.Module) -> bool:
    """Return whether a class's own forward calls something by the name of `apply`."""
    forward = inspect.getattr_static(type(module), "forward", None)
    return "forward" not in vars(module) and "apply" in getattr(
        getattr(forward, "__code__", None), "co_names", ()
    )
