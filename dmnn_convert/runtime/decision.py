"""Which sub-blocks run, decided fast: the controller's arithmetic with everything folded."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..gate import GateController

Keys = list[int]
"""For each image the sub-blocks that run: bit n of a key stands for sub-block n."""


class Decision(nn.Module):
    """Decide as a controller does in evaluation, in NumPy on the CPU.

    On tensors this small PyTorch takes longer to be called than to compute.

    Attributes:
        controller: whose decisions these are; it still says what to record.
        chain: the controller's.
        position: the controller's.
    """

    def __init__(self, controller: GateController) -> None:
        super().__init__()
        self.controller = controller
        self.chain, self.position = controller.chain, controller.position
        self.N, self.keep_one = controller.N, controller.keep_one
        self.on_cpu = controller.w1.weight.device.type == "cpu"
        if self.on_cpu:
            self._fold(controller)

    def _fold(self, c: GateController) -> None:
        w1, b1 = c.w1.weight.detach().double(), None
        if c.norm is not None:
            scale, shift = _normalising(c.norm)
            w1, b1 = w1 * scale, w1 @ shift
        w3, b3 = c.w3.weight.detach().double(), c.w3.bias.detach().double()
        w3, b3 = (t.unflatten(0, (c.N, 2)) for t in (w3, b3))
        w3, b3 = w3[:, 1] - w3[:, 0], b3[:, 1] - b3[:, 0]
        if c.margin_norm is not None:
            scale, shift = _normalising(c.margin_norm)
            w3, b3 = w3 * (c.spread * scale)[:, None], b3 + c.spread * shift
        self.w1, self.w3, self.b3 = _array(w1.T), _array(w3.T), _array(b3)
        self.b1 = None if b1 is None else _array(b1)
        self.w2 = None if c.w2 is None else _array(c.w2.weight.detach().double().T)

    def forward(self, x: Tensor) -> Keys:
        """Return the key of each image of x (B, C, H, W)."""
        if not self.on_cpu:
            return [self._key(row, row) for row in self.controller(x).tolist()]
        current = self.chain.current()
        hidden = _pooled(x, current).dot(self.w1)
        if self.b1 is not None:
            hidden += self.b1
        np.maximum(hidden, 0, out=hidden)
        before = self.chain.take(self.position)
        if self.w2 is not None and before is not None and len(before) == len(hidden):
            more = before.numpy().dot(self.w2)
            hidden += np.maximum(more, 0, out=more)
        state = torch.from_numpy(hidden)
        self.chain.put(self.position, state)
        margins = (hidden.dot(self.w3) + self.b3).tolist()
        if current.forcing is None and current.recorder is None:
            return [self._key(row, row) for row in margins]
        return self._watched(margins, state, current)

    def _watched(self, margins: list[list[float]], state: Tensor, current: Any) -> Keys:
        """Return the keys of a pass that is forced or recorded."""
        wanted = margins
        if current.forcing is not None:
            sizes = self.chain.sizes
            wanted = current.forcing.gates(self.position, len(margins), sizes).tolist()
        keys = [self._key(row, own) for row, own in zip(wanted, margins, strict=True)]
        if current.recorder is not None:
            logits = self.controller.gate_logits(state)
            current.recorder.add(self.position, self.gates(keys), None, logits)
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


def _pooled(x: Tensor, current: Any) -> Any:
    """Return the channels' means (B, C) as an array; a skipped block's are known already."""
    # What inference tensors hold may change without a trace.
    version = None if x.is_inference() else x._version
    known = current.pooled
    if version is not None and known is not None and known[1] == version and known[0]() is x:
        return known[2]
    pooled = x.mean((2, 3), dtype=torch.float32).numpy()
    current.pooled = (weakref.ref(x), version, pooled)
    return pooled


def _array(tensor: Tensor) -> Any:
    return np.ascontiguousarray(tensor.float().numpy())


def _normalising(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Return what a norm without weights multiplies by and adds, (C,) each, in float64."""
    if norm.running_mean is None or norm.running_var is None:
        return torch.ones(norm.num_features).double(), torch.zeros(norm.num_features).double()
    scale = (norm.running_var.detach().double() + norm.eps).rsqrt()
    return scale, -norm.running_mean.detach().double() * scale
