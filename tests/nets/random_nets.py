"""Random residual networks of the sort that people write, for property tests.

A network is a list of `Spec`; each feature that is hard on a conversion is a choice of its own, so
that a failure shrinks to the feature that causes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

CHANNELS = 4
SIZE = (CHANNELS, 5, 5)


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


class Flip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(CHANNELS),
    "group": lambda: nn.GroupNorm(1, CHANNELS),
    "instance": lambda: nn.InstanceNorm2d(CHANNELS, affine=True),
    "layer": lambda: nn.LayerNorm(SIZE[1:]),
    "response": lambda: nn.LocalResponseNorm(2),
    "shuffle": lambda: nn.ChannelShuffle(2),
    "flip": Flip,
    "none": nn.Identity,
}
ACTS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "silu in place": lambda: nn.SiLU(inplace=True),
    "own": Swish,
}
PASSING: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "empty": nn.Sequential,
    "own": Same,
    "nested": lambda: nn.Sequential(Same(), nn.Sequential()),
}
ENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda x, y: x + y,
    "reversed": lambda x, y: y + x,
    "relu": lambda x, y: F.relu(x + y, inplace=True),
    "batch mean": lambda x, y: x.mean(0, keepdim=True) + y,
}
TIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **ENDS,
    "alias": lambda x, y: _alias(x, y),
    "view": lambda x, y: _written_view(x, y),
    "in place": lambda x, y: y.add_(x),
    "scaled view": lambda x, y: _scaled_view(x, y),
}
"""The same, with aliases, views and writes in place."""


def _alias(x: Tensor, y: Tensor) -> Tensor:
    skip = x.clone()
    old = skip
    skip += y
    return skip + old


def _written_view(x: Tensor, y: Tensor) -> Tensor:
    total = x + y
    part = total[:, :2]
    part += 1
    return total


def _scaled_view(x: Tensor, y: Tensor) -> Tensor:
    total = x + y
    total[:, 1:].mul_(0.5)
    return total


@dataclass(frozen=True)
class Spec:
    """How one block is written."""

    norm: str
    tail: str
    act: str
    start: str
    middle: str
    end: str
    tie: str
    bottleneck: bool


class Block(nn.Module):
    def __init__(self, spec: Spec, act: nn.Module) -> None:
        super().__init__()
        self.a = nn.Conv2d(CHANNELS, CHANNELS, 1 if spec.bottleneck else 3, padding="same")
        self.b = nn.Conv2d(CHANNELS, CHANNELS, 3, padding="same")
        self.c = nn.Conv2d(CHANNELS, CHANNELS, 1) if spec.bottleneck else nn.Identity()
        self.norm, self.tail, self.act = NORMS[spec.norm](), NORMS[spec.tail](), act
        self.start, self.middle = PASSING[spec.start](), PASSING[spec.middle]()
        self.end, self.tie = PASSING[spec.end](), TIES[spec.tie]

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self.act(self.norm(self.a(self.start(x)))))
        return self.tie(x, self.end(self.tail(self.c(self.b(y)))))


def specs(ties: dict[str, Callable[[Tensor, Tensor], Tensor]] = ENDS) -> st.SearchStrategy[Spec]:
    """Draw blocks; `TIES` adds aliases, views and writes in place to how they end."""
    norms, passing = st.sampled_from(sorted(NORMS)), st.sampled_from(sorted(PASSING))
    acts, ends = st.sampled_from(sorted(ACTS)), st.sampled_from(sorted(ties))
    return st.builds(Spec, norms, norms, acts, passing, passing, passing, ends, st.booleans())


def network(blocks: list[Spec], shared: bool) -> nn.Module:
    """Build blocks one after another; `shared` gives all of an activation's kind one object."""
    torch.manual_seed(0)
    acts: dict[str, nn.Module] = {}
    layers = []
    for spec in blocks:
        own = ACTS[spec.act]()
        layers.append(Block(spec, acts.setdefault(spec.act, own) if shared else own))
    return nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), *layers).eval()
