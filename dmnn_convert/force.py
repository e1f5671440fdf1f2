"""Decide gates in the controllers' place: all on, all off, at a rate, or as given."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .errors import ArgumentError, GateMismatchError
from .gate import controllers
from .gate_pass import Forcing


@contextmanager
def force_gates(model: nn.Module, gates: bool | float | Tensor, *, seed: int = 0) -> Iterator[None]:
    """Decide the gates in the controllers' place, for the forward passes inside the block.

    They are this thread's or task's; in a generator, its own and not those of whoever iterates over
    it. A block without a shortcut keeps at least one sub-block even so; `record_paths` shows it.

    Args:
        model: a converted model, or one that contains it.
        gates: True (all on), False (all off), a rate in [0, 1] drawn anew for every image from
            `seed`, or a tensor of zeros and ones: (B, total sub-blocks), or (total sub-blocks,) for
            all images alike.
        seed: of the draws at a rate; the same seed gives the same gates.

    Raises:
        ArgumentError: for gates of another kind, or a model that is not converted.
        GateMismatchError: if the tensor does not fit the model or the batch.
    """
    chain = controllers(model)[0].chain
    with chain.forced(_forcing(gates, chain.sizes, seed)):
        yield


def _forcing(gates: bool | float | Tensor, sizes: Sequence[int], seed: int) -> Forcing:
    if isinstance(gates, Tensor):
        return _checked(gates, sizes)
    if isinstance(gates, bool):
        return _AllAt(float(gates))
    if isinstance(gates, int | float) and 0 <= gates <= 1:
        return _AtRate(float(gates), seed, len(sizes))
    raise ArgumentError(
        f"force_gates(gates={gates!r}): give True, False, a rate between 0 and 1, or a "
        f"(B, {sum(sizes)}) or ({sum(sizes)},) tensor of zeros and ones."
    )


def _checked(gates: Tensor, sizes: Sequence[int]) -> Forcing:
    if gates.dim() not in (1, 2) or gates.shape[-1] != sum(sizes):
        raise GateMismatchError(
            f"force_gates: gates of shape {tuple(gates.shape)}; this model has {sum(sizes)} "
            f"sub-blocks, so give (B, {sum(sizes)}), or ({sum(sizes)},) for all images alike."
        )
    if not torch.all((gates == 0) | (gates == 1)):
        raise GateMismatchError("force_gates: gates must be exact zeros and ones.")
    parts = gates.detach().clone().split(tuple(sizes), dim=-1)
    return GivenGates(parts) if gates.dim() == 2 else _Alike(parts)


class _AllAt(Forcing):
    def __init__(self, value: float) -> None:
        self.value = value

    def gates(self, position: int, batch: int, sizes: Sequence[int]) -> Tensor:
        return torch.full((batch, sizes[position]), self.value)


class _AtRate(Forcing):
    def __init__(self, rate: float, seed: int, blocks: int) -> None:
        self.rate = rate
        self.generators = [torch.Generator().manual_seed(seed + i) for i in range(blocks)]

    def gates(self, position: int, batch: int, sizes: Sequence[int]) -> Tensor:
        drawn = torch.rand(batch, sizes[position], generator=self.generators[position])
        return (drawn < self.rate).float()


def given_gates(forcing: Forcing, batch: int, sizes: Sequence[int]) -> GivenGates:
    """Return what is forced in one pass of a batch of B images, before it runs."""
    return GivenGates([forcing.gates(i, batch, sizes) for i in range(len(sizes))])


class GivenGates(Forcing):
    """Gates of each image of one batch.

    Args:
        parts: by block, (B, N).
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = parts

    def of_image(self, i: int) -> GivenGates:
        """Return the gates of one image."""
        return GivenGates([part[i : i + 1] for part in self.parts])

    @functools.cached_property
    def _lists(self) -> list[list[list[float]]]:
        return [part.tolist() for part in self.parts]

    def rows(self, position: int, batch: int, sizes: Sequence[int]) -> list[list[float]]:
        """Return a block's (B, N) as lists, which are made once.

        Raises:
            GateMismatchError: if the batch has another number of images.
        """
        self.gates(position, batch, sizes)
        return self._lists[position]

    def gates(self, position: int, batch: int, sizes: Sequence[int]) -> Tensor:
        """Return a block's (B, N).

        Raises:
            GateMismatchError: if the batch has another number of images.
        """
        given = self.parts[position]
        if len(given) != batch:
            raise GateMismatchError(
                f"force_gates: gates for {len(given)} images, but a batch of {batch}."
            )
        return given


class _Alike(Forcing):
    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = parts

    def gates(self, position: int, batch: int, sizes: Sequence[int]) -> Tensor:
        return self.parts[position].expand(batch, -1)
