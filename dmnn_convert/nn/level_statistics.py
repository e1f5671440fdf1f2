"""The batch-norm statistics of some paths, kept with a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ArgumentError


class Statistics(NamedTuple):
    """A batch norm's running mean and variance, (C,) each."""

    mean: Tensor
    var: Tensor


class LevelStatistics(nn.Module):
    """The batch-norm statistics of some paths of a model.

    Buffers are ``paths``, (paths, total sub-blocks) booleans, and for each norm that any of them
    runs, by its name with "/" for ".", a mean and a variance, (paths, channels) each; zero and one
    for a path that does not run it.

    Attributes:
        lent: whether the model's norms hold a level's statistics instead of their own.
    """

    paths: Tensor

    def __init__(self, paths: Tensor, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.lent = False
        self.register_buffer("paths", paths.bool())
        for name, count in channels.items():
            for kind, value in (("mean", 0.0), ("var", 1.0)):
                self.register_buffer(_key(name, kind), torch.full((len(paths), count), value))

    @classmethod
    def room_for(cls, state: Mapping[str, Tensor], prefix: str) -> LevelStatistics | None:
        """Return one with room for what a `state_dict` holds under a prefix; None for nothing."""
        held = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if "paths" not in held:
            return None
        means = {k: v.shape[-1] for k, v in held.items() if k.endswith(_key("", "mean"))}
        channels = {k.removesuffix("/mean").replace("/", "."): n for k, n in means.items()}
        return cls(torch.zeros_like(held["paths"]), channels)

    def check_own(self, call: str) -> None:
        """Check that the model's norms have their own statistics.

        Raises:
            ArgumentError: inside `at_level`.
        """
        if self.lent:
            raise ArgumentError(
                f"{call}: the model is inside at_level, or a copy that was made there: its norms "
                "have the statistics of a level. Leave that block first."
            )

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of the norms that have statistics here."""
        ends = (name.rpartition("/") for name in self._buffers)
        return tuple(name.replace("/", ".") for name, _, kind in ends if kind == "mean")

    def row(self, path: Tensor) -> int | None:
        """Return the index of a path's statistics; None if there are none."""
        same = (self.paths.cpu() == path.cpu().bool()).all(1).nonzero().flatten().tolist()
        return same[0] if same else None

    def of(self, name: str, row: int) -> Statistics:
        """Return a norm's statistics, which share their memory with the buffers."""
        mean, var = (self.get_buffer(_key(name, kind)) for kind in ("mean", "var"))
        return Statistics(mean[row], var[row])


def _key(name: str, kind: str) -> str:
    return f"{name.replace('.', '/')}/{kind}"
