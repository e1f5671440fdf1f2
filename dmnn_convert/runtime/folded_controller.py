"""A controller's weights with everything folded in, and its arithmetic on the CPU: C, or NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..nn import GateController, is_plain, scale_and_shift

try:
    from . import _controller
except ImportError:  # there was no C compiler, or PyTorch has no OpenMP that fits
    _controller = None  # type: ignore[assignment]


Margins = list[list[float]]
"""For each image, the margin by which each sub-block is on."""


class Folded:
    """A controller's weights, float32, with its norms folded in.

    Hidden state: ``relu(z w1 + b1) + relu(h_before w2)``; margins: ``h w3 + b3``.

    Attributes:
        native: arguments of the native code: sizes, and the addresses of these weights.
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

    def __deepcopy__(self, memo: dict[int, object]) -> Folded:
        return self  # nothing in it ever changes, and copies would lie elsewhere

    def decide(
        self,
        x: Tensor,
        sizes: torch.Size,
        pooled: Tensor | None,
        before: Tensor | None,
        scratch: Scratch,
    ) -> tuple[Margins, Tensor, Tensor]:
        """Return the margins, the hidden state (B, d) and the channels' means, B · C or more.

        Args:
            x: (B, C, H, W), on the CPU.
            sizes: of x; asking a tensor again takes time.
            pooled: the channels' means (B, C), if known.
            before: hidden state (B, d) of the controller before; None if there is none.
            scratch: memory of the results, valid until it is used again.
        """
        if _controller is None:
            return self._in_numpy(x, pooled, before)
        batch, channels, height, width = sizes
        read = 0
        if pooled is None and _is_plain(x):
            pooled, at, _ = scratch.mean(batch * channels)
            read = x.data_ptr()
        else:
            pooled = means(x) if pooled is None else pooled
            at = pooled.data_ptr()
        state, there, _ = scratch.state(batch, self.d)
        left = 0 if before is None or self.w2 is None else before.data_ptr()
        margins = _controller.decide(read, at, left, there, batch, height * width, self.native)
        return margins, state, pooled

    def _in_numpy(
        self, x: Tensor, pooled: Tensor | None, before: Tensor | None
    ) -> tuple[Margins, Tensor, Tensor]:
        pooled = means(x) if pooled is None else pooled
        hidden = pooled.numpy().dot(self.w1.numpy())
        if self.b1 is not None:
            hidden += self.b1.numpy()
        np.maximum(hidden, 0, out=hidden)
        if before is not None and self.w2 is not None:
            hidden += np.maximum(before.numpy().dot(self.w2.numpy()), 0)
        margins = hidden.dot(self.w3.numpy()) + self.b3.numpy()
        return margins.tolist(), torch.from_numpy(hidden), pooled


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def is_foldable(c: GateController) -> bool:
    """Return whether a controller's layers do only what their weights say."""
    layers = [layer for layer in (c.w1, c.w2, c.w3) if layer is not None]
    norms = [norm for norm in (c.norm, c.margin_norm) if norm is not None]
    return (
        is_plain(c, GateController)
        and all(is_plain(layer, nn.Linear) for layer in layers)
        and all(is_plain(norm, nn.BatchNorm1d) for norm in norms)
    )


def folded(c: GateController) -> Folded:
    """Return a controller's weights, folded."""
    w1, b1 = _exact(c.w1.weight), None
    if c.norm is not None:
        scale, shift = _normalising(c.norm)
        w1, b1 = w1 * scale, w1 @ shift
    w3, b3 = (_exact(t).unflatten(0, (c.N, 2)) for t in (c.w3.weight, c.w3.bias))
    w3, b3 = w3[:, 1] - w3[:, 0], b3[:, 1] - b3[:, 0]
    if c.margin_norm is not None:
        scale, shift = _normalising(c.margin_norm)
        w3, b3 = w3 * (c.spread * scale)[:, None], b3 + c.spread * shift
    if c.offset is not None:
        b3 = b3 + _exact(c.offset)
    w2 = None if c.w2 is None else _exact(c.w2.weight).T
    return Folded(c.w1.weight.device, w1.T, b1, w2, w3.T, b3)


def _exact(weight: Tensor) -> Tensor:
    return weight.detach().cpu().double()


def _normalising(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Return the scale and shift of a norm, (C,) each, in float64, on the CPU."""
    if norm.running_mean is None or norm.running_var is None:
        return torch.ones(norm.num_features).double(), torch.zeros(norm.num_features).double()
    scale, shift = scale_and_shift(norm)
    return scale.cpu(), shift.cpu()


def means(x: Tensor) -> Tensor:
    """Return the means (B, C), float32, of the channels of x (B, C, H, W)."""
    return x.mean((2, 3), dtype=torch.float32).contiguous()


def _is_plain(x: Tensor) -> bool:
    """Return whether x has the memory layout that the native code reads."""
    return x.dtype is torch.float32 and x.is_contiguous(memory_format=torch.channels_last)


class _Room(NamedTuple):
    """Memory, its address, and its number of rows."""

    values: Tensor
    address: int
    rows: int


class Scratch:
    """Memory that the controllers of one thread's passes use in turn.

    Attributes:
        means: for the channels' means of the present images.
        states: for hidden states: a controller reads the one and writes the other.
    """

    def __init__(self) -> None:
        self.means: _Room | None = None
        self.states: list[_Room | None] = [None, None]

    def state(self, batch: int, d: int) -> _Room:
        """Return room for a hidden state (B, d), other than that of the previous call."""
        self.states.reverse()
        room = self.states[0]
        if room is None or room.rows != batch:
            self.states[0] = room = _room(batch, d)
        return room

    def mean(self, count: int) -> _Room:
        """Return room for at least this many values."""
        if self.means is None or self.means.rows < count:
            self.means = _room(count)
        return self.means


def _room(*size: int) -> _Room:
    values = torch.empty(size, dtype=torch.float32, device="cpu")  # whatever the user's defaults
    return _Room(values, values.data_ptr(), size[0])
