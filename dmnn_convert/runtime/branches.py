"""Branches that a device takes by itself: no value of a gate comes back to Python."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def branch(on: Tensor, run: Callable[[int], Tensor], *, keep_one: bool) -> Tensor:
    """Return ``run(key)`` for the key of gates that are on (N,), bool; bit n is the n-th gate's.

    In a CUDA graph, each choice is a conditional node; elsewhere, the gates are read.

    Args:
        on: the gates, on the device.
        run: makes a new tensor, of one shape for all keys.
        keep_one: whether one gate at least is on, so that key 0 never comes.
    """

    def from_gate(n: int, key: int) -> Tensor:
        if n == len(on):
            return run(key)
        if keep_one and key == 0 and n == len(on) - 1:
            return run(1 << n)
        return _either(on[n], lambda: from_gate(n + 1, key | 1 << n), lambda: from_gate(n + 1, key))

    return from_gate(0, 0)


def _either(on: Tensor, then: Callable[[], Tensor], otherwise: Callable[[], Tensor]) -> Tensor:
    # The operator itself: `torch.cond` would compile both branches first.
    taken: Tensor = torch.ops.higher_order.cond(on, then, otherwise, ())
    return taken


def warming_up() -> AbstractContextManager[object]:
    """Return a context in which a call on a GPU warms up all of its branches.

    Raises:
        ImportError: if this PyTorch cannot capture branches.
    """
    return _mode("ControlFlowOpWarmupDispatchMode")


def as_nodes() -> AbstractContextManager[object]:
    """Return a context in which branches become conditional nodes of the CUDA graph in the making.

    Raises:
        ImportError: if this PyTorch cannot capture branches.
    """
    return _mode("CUDAGraphCaptureControlFlowOpDispatchMode")


def _mode(name: str) -> AbstractContextManager[object]:
    # A private module, which PyTorch before 2.14 lacks.
    nodes = importlib.import_module("torch._higher_order_ops.cudagraph_conditional_nodes")
    mode: AbstractContextManager[object] = getattr(nodes, name)()
    return mode
