"""Run a model in evaluation for a while, on a few batches, and leave it as it was."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .block import MultiPathBlock, set_execution


@contextmanager
def in_evaluation(model: nn.Module, execution: str | None = None) -> Iterator[None]:
    """Put a model in evaluation without gradients; modes and executions come back afterwards.

    Args:
        model: any model.
        execution: how its multi-path blocks run meanwhile; None if it has none.
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


def image_batches(
    loader: Iterable[Any], batches: int, what: str, *, progress: bool = False
) -> Iterator[Tensor]:
    """Yield the images of at most `batches` batches, with a bar that says `what`."""
    given = itertools.islice(loader, batches)
    for batch in tqdm(given, what, batches, disable=not progress, leave=False):
        yield batch[0] if isinstance(batch, tuple | list) else batch


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's first parameter lies."""
    return next(model.parameters()).device
