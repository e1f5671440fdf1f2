"""Forwards that were replaced on an instance."""

from __future__ import annotations

from torch import nn

REPLACED = (
    "its forward was replaced on the instance; put the class's own back (Accelerate: "
    "remove_hook_from_module), convert, and replace it afterwards"
)


def own_forward(m: nn.Module) -> str | None:
    """Return which method of its class a module runs; None if it runs something else."""
    given = vars(m).get("forward")
    if given is None:
        return "forward"
    name = getattr(given, "__name__", "")
    bound = getattr(given, "__self__", None) is m
    own = getattr(type(m), name, None) is getattr(given, "__func__", given)
    return name if bound and own else None
