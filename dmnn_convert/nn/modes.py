"""Temporary evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .block import MultiPathBlock, set_execution


@contextmanager
def in_evaluation(model: nn.Module, execution: str | None = None) -> Iterator[None]:
    """Put a model in evaluation without gradients; modes and executions are restored afterwards.

    Args:
        model: any model.
        execution: how its multi-path blocks run inside; None if it has none.
    """
    modes = [(module, module.training) for module in model.modules()]
    executions = [(m, m.execution) for m in model.modules() if isinstance(m, MultiPathBlock)]
    try:
        model.eval()
        if execution is not None:
            set_execution(model, execution)
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for block, before in executions:
            block.execution = before
