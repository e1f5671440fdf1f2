"""Plain modules: no hooks, no wrapper, no forward on the instance."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

from torch import nn
from torch.nn.modules import module as hooks

M = TypeVar("M", bound=nn.Module)


def is_plain(module: nn.Module, kind: type[M]) -> TypeGuard[M]:
    """Return whether a module is exactly of a class, without hooks, with plain parameters."""
    return (
        type(module) is kind
        and not is_watched(module)
        and all(p is None or type(p) is nn.Parameter for p in module._parameters.values())
    )


def is_watched(module: nn.Module) -> bool:
    """Return whether a module's call does more than its class's forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def has_global_hook() -> bool:
    """Return whether global hooks exist (PyTorch 2.6 has no function for this)."""
    return bool(
        hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
    )
