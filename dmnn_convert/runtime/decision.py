"""Fast decisions about the sub-blocks that run, and the state they pass to the next block."""

from __future__ import annotations

import weakref
from typing import NoReturn

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..nn import Forcing, GateController, GatePass, Recorder, with_one_kept, without_autocast
from .careful import CAREFUL
from .folded_controller import Margins, Scratch, folded, is_foldable, means

Keys = list[int]
"""For each image the sub-blocks that run: bit n of a key stands for sub-block n."""


class Decision(nn.Module):
    """Decide by calling the controller, whatever its layers are.

    Attributes:
        controller: whose decisions these are.
    """

    def __init__(self, controller: GateController) -> None:
        super().__init__()
        self.controller = controller
        self.N = controller.N

    def forward(self, x: Tensor, current: GatePass) -> Keys:
        """Return the key of each image of x (B, C, H, W) in a pass."""
        return self.keys(self.gates_of(x))

    def gates_of(self, x: Tensor) -> Tensor:
        """Return the gates (B, N), float32, of x (B, C, H, W)."""
        return self.controller(x)  # type: ignore[no-any-return]

    def gates(self, keys: Keys) -> Tensor:
        """Return keys as gates (B, N), float32 zeros and ones."""
        return (torch.tensor(keys, dtype=torch.long)[:, None] >> torch.arange(self.N) & 1).float()

    def keys(self, gates: Tensor) -> Keys:
        """Return gates (B, N), zeros and ones, as keys."""
        bits = 2 ** torch.arange(self.N, device=gates.device)
        keys: Keys = (gates.long() * bits).sum(1).tolist()
        return keys


class _FastState:
    """The state of folded controllers in one thread's passes.

    Attributes:
        scratch: memory, reused by the next pass.
        pooled: a block's input, its version and its channels' means, passed on by skipped blocks.
    """

    def __init__(self) -> None:
        self.scratch = Scratch()
        self.pooled: tuple[weakref.ref[Tensor], int, Tensor] | None = None


class FoldedDecision(Decision):
    """Decide as a controller of plain layers does in evaluation.

    For tensors this small, calling PyTorch takes longer than computing, so other code does it on
    the CPU. Code that runs between two convolutions has to be fetched into the caches each time:
    few calls save a pass more time than little work.

    Attributes:
        controller: the source of what is recorded.
        chain: the controller's.
        position: the controller's.
        folded: the controller's weights.
    """

    def __init__(self, controller: GateController) -> None:
        super().__init__(controller)
        self.chain, self.position = controller.chain, controller.position
        self.last = self.position == len(self.chain.sizes) - 1
        self.keep_one = controller.keep_one
        self.folded = folded(controller)
        self.on_cpu = self.folded.w1.device.type == "cpu"

    def forward(self, x: Tensor, current: GatePass) -> Keys:
        """Return the key of each image.

        Args:
            x: (B, C, H, W).
            current: the pass that this is part of.

        Raises:
            ArgumentError: if x has another number of channels than the controller.
        """
        if CAREFUL.on or not self.on_cpu:
            return self.keys(self.gates_of(x))
        f, sizes = self.folded, x.shape
        if sizes[1] != f.channels:  # the native code reads as many as there should be
            self._refuse(sizes)
        before = current.take(self.position)
        if before is not None and before.shape[0] != sizes[0]:
            before = None
        fast = _fast_state(current)
        known = fast.pooled
        handed_on = None if known is None else _pooled_before(x, *known)
        margins, state, pooled = f.decide(x, sizes, handed_on, before, fast.scratch)
        current.put(self.position, state, last=self.last)
        forcing, recorder = self.chain.forcing, self.chain.recorder
        if forcing is None and recorder is None:
            keys = [self._key(row, row) for row in margins]
        else:
            keys = self._watched(margins, state, forcing, recorder)
        if any(keys):
            fast.pooled = None
        elif handed_on is None:  # the block returns its input, which the next one averages
            _hand_on(x, pooled.flatten()[: sizes[0] * sizes[1]].view(sizes[:2]), fast)
        return keys

    def _refuse(self, sizes: torch.Size) -> NoReturn:
        raise ArgumentError(
            f"a prepared block got {tuple(sizes)}, but takes {self.folded.channels} channels; "
            "give images as the model takes them."
        )

    def gates_of(self, x: Tensor) -> Tensor:
        """Return the gates (B, N), float32, of x (B, C, H, W), both on one device.

        Nothing waits for that device, so this can be part of a CUDA graph.

        Raises:
            ArgumentError: if x has another number of channels than the controller.
        """
        f, current = self.folded, self.chain.current()
        if x.shape[1] != f.channels:
            self._refuse(x.shape)
        before = current.take(self.position)
        with without_autocast(x.device.type):
            pooled = means(x)
            state = torch.relu(pooled @ f.w1 if f.b1 is None else torch.addmm(f.b1, pooled, f.w1))
            if before is not None and f.w2 is not None and len(before) == len(x):
                state = state + torch.relu(before @ f.w2)
            margins = torch.addmm(f.b3, state, f.w3)
            wanted = margins
            forcing = self.chain.forcing
            if forcing is not None:
                wanted = forcing.gates(self.position, len(x), self.chain.sizes)
            gates = (wanted.to(x.device) > 0).float()
            gates = with_one_kept(gates, margins) if self.keep_one else gates
        current.put(self.position, state, last=self.last)
        recorder = self.chain.recorder
        if recorder is not None:
            self._record(recorder, state, gates)
        return gates

    def _record(self, recorder: Recorder, state: Tensor, gates: Tensor) -> None:
        with without_autocast(state.device.type):
            logits = self.controller.gate_logits(state)
        recorder.add(self.position, gates, None, logits)

    def _watched(
        self, margins: Margins, state: Tensor, forcing: Forcing | None, recorder: Recorder | None
    ) -> Keys:
        """Return the keys of a pass that is forced or recorded."""
        wanted = margins
        if forcing is not None:
            wanted = forcing.rows(self.position, len(margins), self.chain.sizes)
        keys = [self._key(row, own) for row, own in zip(wanted, margins, strict=True)]
        if recorder is not None:
            self._record(recorder, state, self.gates(keys))
        return keys

    def _key(self, wanted: list[float], margins: list[float]) -> int:
        key = 0
        for n, value in enumerate(wanted):
            if value > 0:
                key |= 1 << n
        if key == 0 and self.keep_one:
            return 1 << margins.index(max(margins))
        return key


def decision_of(controller: GateController) -> Decision:
    """Return the fastest form of a controller's decisions."""
    return FoldedDecision(controller) if is_foldable(controller) else Decision(controller)


def _pooled_before(
    x: Tensor, of: weakref.ref[Tensor], version: int, pooled: Tensor
) -> Tensor | None:
    """Return the channels' means (B, C) that a skipped block has passed on, if they are x's."""
    return pooled if of() is x and version == x._version else None


def _hand_on(x: Tensor, pooled: Tensor, fast: _FastState) -> None:
    """Leave the channels' means (B, C) of x for the next controller."""
    if x.is_inference():  # what it holds may change without a trace
        return
    scratch = fast.scratch
    if scratch.means is not None and pooled.data_ptr() == scratch.means.address:
        scratch.means = None  # it belongs to x now
    fast.pooled = weakref.ref(x), x._version, pooled


def _fast_state(current: GatePass) -> _FastState:
    state = current.fast_state
    if not isinstance(state, _FastState):
        state = current.fast_state = _FastState()
    return state


def forget_means(current: GatePass) -> None:
    """Drop the means from an earlier pass."""
    _fast_state(current).pooled = None
