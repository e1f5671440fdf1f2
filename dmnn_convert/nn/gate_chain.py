"""The state that a forward pass carries from controller to controller."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from .opened import latest, opened


class Recorder(Protocol):
    """An observer of the gates of a forward pass."""

    def add(
        self, position: int, gates: Tensor, category_logits: Tensor | None, gate_logits: Tensor
    ) -> None:
        """Take gates (B, N), category logits (B, K) and gate logits (B, N, 2) of a controller."""


class Forcing(Protocol):
    """A source of gates in the controllers' place."""

    def gates(self, position: int, batch: int, sizes: Sequence[int]) -> Tensor:
        """Return the gates (B, N) of the block at `position`."""

    def rows(self, position: int, batch: int, sizes: Sequence[int]) -> list[list[float]]:
        """Return these gates as lists."""
        rows: list[list[float]] = self.gates(position, batch, sizes).tolist()
        return rows

    def path(self, position: int, *, training: bool) -> tuple[int, ...] | None:
        """Return the only sub-blocks to compute, if they are known beforehand."""
        return None


class GatePass:
    """The state that one thread's forward pass carries from controller to controller.

    Attributes:
        position: of the latest controller.
        hidden: its state (B, d).
        masked: every sub-block is computed, whatever the blocks' own execution.
        branched: prepared blocks branch by gates that stay on the device, for one image.
        fast_state: private state of a fast form of the controllers.
    """

    def __init__(self) -> None:
        self.position = -1
        self.hidden: Tensor | None = None
        self.masked = self.branched = False
        self.fast_state: object = None

    def take(self, position: int) -> Tensor | None:
        """Return the previous controller's hidden state (B, d), once; None if there is none."""
        fits = 0 <= self.position < position
        hidden = self.hidden if fits else None
        self.position, self.hidden = -1, None
        return hidden

    def put(self, position: int, hidden: Tensor, *, last: bool) -> None:
        """Leave the hidden state (B, d) for the next controller; the last one leaves none."""
        if not last:
            self.position, self.hidden = position, hidden


class _Traced:
    """One plain object for tools that cannot look up tasks and threads.

    Attributes:
        current: the pass.
        opened: everything open in any thread, the latest last, by kind.
    """

    def __init__(self) -> None:
        self.current = GatePass()
        self.opened: dict[str, list[Any]] = {"recorder": [], "forcing": []}

    def latest(self, kind: str) -> Any:
        """Return the latest open value of a kind; None if nothing is open."""
        opened = self.opened[kind]
        return opened[-1] if opened else None


class GateChain:
    """Link the controllers of one model in execution order, for one forward pass at a time.

    The first controller starts a pass; each later one takes the hidden state of the one before
    (eq. 7). Every thread has its own pass, and every task its own recorders and forced gates.
    While PyTorch compiles or exports, one plain object is used, which those tools can follow.
    Copies and pickles carry no tensors.

    Attributes:
        sizes: number of sub-blocks of each block, in execution order.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self._traced = _Traced()
        self._threads = threading.local()

    def __deepcopy__(self, memo: dict[int, Any]) -> GateChain:
        return GateChain(self.sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        return (GateChain, (self.sizes,))

    def current(self) -> GatePass:
        """Return the calling thread's pass."""
        if torch.compiler.is_compiling():
            return self._traced.current
        if not hasattr(self._threads, "current"):
            self._threads.current = GatePass()
        current: GatePass = self._threads.current
        return current

    def take(self, position: int) -> Tensor | None:
        """Return the previous controller's hidden state (B, d), once; None if there is none."""
        return self.current().take(position)

    def put(self, position: int, hidden: Tensor) -> None:
        """Leave the hidden state (B, d) for the next controller; the last one leaves none."""
        self.current().put(position, hidden, last=position == len(self.sizes) - 1)

    @property
    def recorder(self) -> Recorder | None:
        """The recorder of the current pass, if any."""
        return self._latest("recorder")  # type: ignore[no-any-return]

    @property
    def forcing(self) -> Forcing | None:
        """The forcing that decides the gates of the current pass, if any."""
        return self._latest("forcing")  # type: ignore[no-any-return]

    def _latest(self, kind: str) -> Any:
        return self._traced.latest(kind) if torch.compiler.is_compiling() else latest(self, kind)

    def recording(self, recorder: Recorder) -> AbstractContextManager[None]:
        """Show `recorder` the gates of the forward passes that this task runs inside."""
        return self._during("recorder", recorder)

    def forced(self, forcing: Forcing | None) -> AbstractContextManager[None]:
        """Let `forcing` decide the gates of the forward passes that this task runs inside."""
        return self._during("forcing", forcing)

    @contextmanager
    def _during(self, kind: str, value: object) -> Iterator[None]:
        traced = self._traced.opened
        with opened(self, kind, value):
            traced[kind] = [*traced[kind], value]
            try:
                yield
            finally:
                traced[kind] = [other for other in traced[kind] if other is not value]
