"""Which sub-blocks run, decided fast: the controller's arithmetic with everything folded."""

from __future__ import annotations

import weakref
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..gate import GateController, with_one_kept, without_autocast
from ..gate_pass import GatePass, Recorder

try:
    from . import _controller
except ImportError:  # there was no C compiler, or PyTorch has no OpenMP that fits
    _controller = None  # type: ignore[assignment]

Keys = list[int]
"""For each image the sub-blocks that run: bit n of a key stands for sub-block n."""
Margins = list[list[float]]
"""For each image by how much each sub-block is on."""


class Decision(nn.Module):
    """Decide as a controller does in evaluation.

    On tensors this small PyTorch takes longer to be called than to compute, so that on the CPU
    other code does it. What is called between two convolutions has to be fetched into the caches
    anew each time: a pass spends less time on few calls than on little work.

    Attributes:
        controller: whose decisions these are; it still says what to record.
        chain: the controller's.
        position: the controller's.
        folded: the controller's weights.
    """

    def __init__(self, controller: GateController) -> None:
        super().__init__()
        self.controller = controller
        self.chain, self.position = controller.chain, controller.position
        self.last = self.position == len(self.chain.sizes) - 1
        self.N, self.keep_one = controller.N, controller.keep_one
        self.folded = _folded(controller)
        self.on_cpu = self.folded.w1.device.type == "cpu"

    def forward(self, x: Tensor, current: GatePass) -> Keys:
        """Return the key of each image.

        Args:
            x: (B, C, H, W).
            current: the pass that this is part of.

        Raises:
            ArgumentError: if x has another number of channels than the controller.
        """
        if not self.on_cpu:
            return self.keys(self.gates_of(x))
        f, sizes = self.folded, x.shape
        if sizes[1] != f.channels:  # the native code reads as many as there should be
            self._refuse(sizes)
        before = current.take(self.position)
        if before is not None and (f.w2 is None or before.shape[0] != sizes[0]):
            before = None
        known = current.pooled
        handed_on = None if known is None else _pooled_before(x, *known)
        compute = _in_numpy if _controller is None else _natively
        scratch = current.scratch or _scratch_of(current)
        margins, state, pooled = compute(f, x, sizes, handed_on, before, scratch)
        current.put(self.position, state, last=self.last)
        if current.forcing is None and current.recorder is None:
            keys = [self._key(row, row) for row in margins]
        else:
            keys = self._watched(margins, state, current)
        if any(keys):
            current.pooled = None
        elif handed_on is None:  # the block returns its input, which the next one averages
            _hand_on(x, pooled.flatten()[: sizes[0] * sizes[1]].view(sizes[:2]), current)
        return keys

    def _refuse(self, sizes: torch.Size) -> NoReturn:
        raise ArgumentError(
            f"a prepared block got {tuple(sizes)}, but takes {self.folded.channels} channels; "
            "give images as the model takes them."
        )

    def gates_of(self, x: Tensor) -> Tensor:
        """Return the gates (B, N), float32, of x (B, C, H, W), both on one device.

        Nothing waits for that device, so that this can be part of a CUDA graph.

        Raises:
            ArgumentError: if x has another number of channels than the controller.
        """
        f, current = self.folded, self.chain.current()
        if x.shape[1] != f.channels:
            self._refuse(x.shape)
        before = current.take(self.position)
        with without_autocast(x.device.type):
            pooled = _means(x)
            state = torch.relu(pooled @ f.w1 if f.b1 is None else torch.addmm(f.b1, pooled, f.w1))
            if before is not None and f.w2 is not None and len(before) == len(x):
                state = state + torch.relu(before @ f.w2)
            margins = torch.addmm(f.b3, state, f.w3)
            wanted = margins
            if current.forcing is not None:
                wanted = current.forcing.gates(self.position, len(x), self.chain.sizes)
            gates = (wanted.to(x.device) > 0).float()
            gates = with_one_kept(gates, margins) if self.keep_one else gates
        current.put(self.position, state, last=self.last)
        if current.recorder is not None:
            self._record(current.recorder, state, gates)
        return gates

    def _record(self, recorder: Recorder, state: Tensor, gates: Tensor) -> None:
        with without_autocast(state.device.type):
            logits = self.controller.gate_logits(state)
        recorder.add(self.position, gates, None, logits)

    def _watched(self, margins: Margins, state: Tensor, current: GatePass) -> Keys:
        """Return the keys of a pass that is forced or recorded."""
        wanted = margins
        if current.forcing is not None:
            wanted = current.forcing.rows(self.position, len(margins), self.chain.sizes)
        keys = [self._key(row, own) for row, own in zip(wanted, margins, strict=True)]
        if current.recorder is not None:
            self._record(current.recorder, state, self.gates(keys))
        return keys

    def _key(self, wanted: list[float], margins: list[float]) -> int:
        key = 0
        for n, value in enumerate(wanted):
            if value > 0:
                key |= 1 << n
        if key == 0 and self.keep_one:
            return 1 << margins.index(max(margins))
        return key

    def gates(self, keys: Keys) -> Tensor:
        """Return keys as gates (B, N), float32 zeros and ones."""
        return (torch.tensor(keys, dtype=torch.long)[:, None] >> torch.arange(self.N) & 1).float()

    def keys(self, gates: Tensor) -> Keys:
        """Return gates (B, N), zeros and ones, as keys."""
        bits = 2 ** torch.arange(self.N, device=gates.device)
        keys: Keys = (gates.long() * bits).sum(1).tolist()
        return keys


class _Folded:
    """A controller's weights, float32, with its norms folded in.

    Hidden state: ``relu(z w1 + b1) + relu(h_before w2)``; margins: ``h w3 + b3``.

    Attributes:
        native: what the native code is told: sizes, and the addresses of these weights.
    """

    def __init__(
        self,
        device: torch.device,
        w1: Tensor,
        b1: Tensor | None,
        w2: Tensor | None,
        w3: Tensor,
        b3: Tensor,
    ) -> None:
        self.w1, self.w3, self.b3 = (t.to(device, torch.float32).contiguous() for t in (w1, w3, b3))
        self.b1 = None if b1 is None else b1.to(device, torch.float32).contiguous()
        self.w2 = None if w2 is None else w2.to(device, torch.float32).contiguous()
        self.channels, self.d = self.w1.shape
        N = len(self.b3)
        first = _address(self.w1), _address(self.b1), _address(self.w2)
        self.native = (self.channels, self.d, N, *first, _address(self.w3), _address(self.b3))

    def __deepcopy__(self, memo: dict[int, object]) -> _Folded:
        return self  # nothing in it ever changes, and copies would lie elsewhere


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _folded(c: GateController) -> _Folded:
    w1, b1 = _exact(c.w1.weight), None
    if c.norm is not None:
        scale, shift = _normalising(c.norm)
        w1, b1 = w1 * scale, w1 @ shift
    w3, b3 = (_exact(t).unflatten(0, (c.N, 2)) for t in (c.w3.weight, c.w3.bias))
    w3, b3 = w3[:, 1] - w3[:, 0], b3[:, 1] - b3[:, 0]
    if c.margin_norm is not None:
        scale, shift = _normalising(c.margin_norm)
        w3, b3 = w3 * (c.spread * scale)[:, None], b3 + c.spread * shift
    w2 = None if c.w2 is None else _exact(c.w2.weight).T
    return _Folded(c.w1.weight.device, w1.T, b1, w2, w3.T, b3)


def _exact(weight: Tensor) -> Tensor:
    return weight.detach().cpu().double()


def _normalising(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Return what a norm without weights multiplies by and adds, (C,) each, in float64."""
    if norm.running_mean is None or norm.running_var is None:
        return torch.ones(norm.num_features).double(), torch.zeros(norm.num_features).double()
    scale = (_exact(norm.running_var) + norm.eps).rsqrt()
    return scale, -_exact(norm.running_mean) * scale


def _pooled_before(
    x: Tensor, of: weakref.ref[Tensor], version: int, pooled: Tensor
) -> Tensor | None:
    """Return the channels' means (B, C) that a skipped block has handed on, if they are x's."""
    return pooled if of() is x and version == x._version else None


def _hand_on(x: Tensor, pooled: Tensor, current: GatePass) -> None:
    """Leave the channels' means (B, C) of x for the next controller."""
    if x.is_inference():  # what it holds may change without a trace
        return
    scratch = _scratch_of(current)
    if scratch.means is not None and pooled.data_ptr() == scratch.means.address:
        scratch.means = None  # it belongs to x now
    current.pooled = weakref.ref(x), x._version, pooled


def _means(x: Tensor) -> Tensor:
    return x.mean((2, 3), dtype=torch.float32).contiguous()


class _Room(NamedTuple):
    """Memory, where it lies, and how many rows it has."""

    values: Tensor
    address: int
    rows: int


class _Scratch:
    """Memory that the controllers of one thread's passes use in turn.

    Attributes:
        means: for the channels' means of the images at hand.
        states: for hidden states: a controller reads the one and writes the other.
    """

    def __init__(self) -> None:
        self.means: _Room | None = None
        self.states: list[_Room | None] = [None, None]

    def state(self, batch: int, d: int) -> _Room:
        """Return room for a hidden state (B, d): not that of the last one that was asked for."""
        self.states.reverse()
        room = self.states[0]
        if room is None or room.rows != batch:
            self.states[0] = room = _room(batch, d)
        return room

    def mean(self, count: int) -> _Room:
        """Return room for so many values or more."""
        if self.means is None or self.means.rows < count:
            self.means = _room(count)
        return self.means


def _room(*size: int) -> _Room:
    values = torch.empty(size, dtype=torch.float32, device="cpu")  # whatever the user's defaults
    return _Room(values, values.data_ptr(), size[0])


def _scratch_of(current: GatePass) -> _Scratch:
    if current.scratch is None:
        current.scratch = _Scratch()
    scratch: _Scratch = current.scratch
    return scratch


def _natively(
    f: _Folded,
    x: Tensor,
    sizes: torch.Size,
    pooled: Tensor | None,
    before: Tensor | None,
    scratch: _Scratch,
) -> tuple[Margins, Tensor, Tensor]:
    """Return the margins, the hidden state (B, d) and the channels' means, B · C or more."""
    batch, channels, height, width = sizes
    read, places = 0, height * width
    if pooled is None and _is_plain(x):
        pooled, at, _ = scratch.mean(batch * channels)
        read = x.data_ptr()
    else:
        pooled = _means(x) if pooled is None else pooled
        at = pooled.data_ptr()
    state, there, _ = scratch.state(batch, f.d)
    left = 0 if before is None else before.data_ptr()
    margins = _controller.decide(read, at, left, there, batch, places, f.native)
    return margins, state, pooled


def _is_plain(x: Tensor) -> bool:
    """Return whether x lies as the native code reads it."""
    return x.dtype is torch.float32 and x.is_contiguous(memory_format=torch.channels_last)


def _in_numpy(
    f: _Folded,
    x: Tensor,
    sizes: torch.Size,
    pooled: Tensor | None,
    before: Tensor | None,
    scratch: _Scratch,
) -> tuple[Margins, Tensor, Tensor]:
    """Do what `_natively` does."""
    pooled = _means(x) if pooled is None else pooled
    hidden = pooled.numpy().dot(f.w1.numpy())
    if f.b1 is not None:
        hidden += f.b1.numpy()
    np.maximum(hidden, 0, out=hidden)
    if before is not None and f.w2 is not None:
        hidden += np.maximum(before.numpy().dot(f.w2.numpy()), 0)
    margins = hidden.dot(f.w3.numpy()) + f.b3.numpy()
    return margins.tolist(), torch.from_numpy(hidden), pooled
