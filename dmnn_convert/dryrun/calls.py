"""The calls of a partly traced model's modules, recorded in one forward pass.

No graph shows how the parts of such a model are called. Their blocks can have gates, with one row
per image, only if they run once in a forward pass, on the batch of images: not on every level of a
pyramid, nor on proposals. One pass on an example shows this, and the order in which they run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import TracedModel, bound, own_streams, running_copy, undone
from .count import Shape, example_images
from .input_size import does_not_run

BATCHES = (2, 1)
"""Two images tell the batch from other dimensions; not every model takes two."""


@dataclass(frozen=True)
class Call:
    """One call of a module: its order, rows of its first tensor, arguments that are no tensors."""

    time: int
    rows: int | None
    constants: dict[str, Any]


@dataclass
class Run:
    """The calls of a model's modules in one forward pass."""

    batch: int
    calls: dict[str, list[Call]] = field(default_factory=dict)
    clock: int = 0

    def note(self, path: str, m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take a call; registered as a forward pre-hook."""
        tensors = (a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.dim())
        rows = next((len(a) for a in tensors), None)
        named = bound(m, args, kwargs)
        constants = {k: v for k, v in named.items() if not isinstance(v, Tensor)}
        self.calls.setdefault(path, []).append(Call(self.clock, rows, constants))
        self.clock += 1

    def start(self, layers: Iterable[str], otherwise: int) -> int:
        """Return when the first of the layers was called; `otherwise` if none was."""
        times = (call.time for path in layers for call in self.calls.get(path, []))
        return min(times, default=otherwise)

    def reason_against(
        self, traced: TracedModel, enclosing: str, layers: Iterable[str]
    ) -> str | None:
        """Return why a block of a traced part cannot have gates per image; None if it can."""
        if not any(f"{enclosing}.".startswith(f"{part}.") for part in traced.parts):
            return None
        for path in (enclosing, *layers):
            calls = self.calls.get(path, [])
            if len(calls) != 1:
                called = f"called {len(calls)} times" if calls else "not called"
                return f"{path} is {called} in a forward pass on {self.batch} images"
            if calls[0].rows not in (None, self.batch):
                return f"{path} reads {calls[0].rows} rows in a forward pass on {self.batch} images"
        given = self.calls[enclosing][0].constants
        for name, value in traced.calls[enclosing][0].items():
            if name not in given or not _equal(given[name], value):
                return f"{enclosing} is called with another {name} than its default"
        return None


def _equal(a: Any, b: Any) -> bool:
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:  # containers of tensors
        return False


def call_record(model: nn.Module, traced: TracedModel, input_size: Shape) -> Run | None:
    """Run the model once, in evaluation, if its graph is in parts.

    Raises:
        ArgumentError: if the model does not run on images of this size.
    """
    if not traced.parts:
        return None
    failure = Exception("no batch was tried")
    for batch in BATCHES:
        for device in ("meta", None):  # the meta device computes nothing, so it comes first
            try:
                return _run(running_copy(model, device), input_size, batch)
            except Exception as error:  # whatever the model raises
                failure = error
    raise does_not_run(model, input_size, failure) from failure


def _run(copied: nn.Module, input_size: Shape, batch: int) -> Run:
    run = Run(batch)
    copied.eval()  # a train() of the user's own may return nothing
    for path, module in copied.named_modules():
        hook = functools.partial(run.note, path)
        module.register_forward_pre_hook(hook, with_kwargs=True)
    with undone(copied), own_streams(copied), torch.no_grad():
        copied(example_images(copied, input_size, batch))
    return run
