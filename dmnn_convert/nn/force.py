"""Gates forced from outside: all on, all off, at a rate, or as given."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, GateMismatchError
from .controller import GateController, controllers
from .gate_chain import Forcing


@contextmanager
def force_gates(model: nn.Module, gates: bool | float | Tensor, *, seed: int = 0) -> Iterator[None]:
    """Decide the gates in the controllers' place, for the forward passes inside the block.

    They apply to this thread or task; inside a generator, to the generator and not to its caller.
    A block without a shortcut still keeps at least one sub-block; `record_paths` shows it.

    Args:
        model: a converted model, or one that contains it.
        gates: True (all on), False (all off), a rate in [0, 1] drawn for every image from
            `seed`, or a tensor of zeros and ones: (B, total sub-blocks), or (total sub-blocks,) for
            all images alike.
        seed: of the draws at a rate; the same seed gives the same gates.

    Raises:
        ArgumentError: for gates of another kind, or a model that is not converted.
        GateMismatchError: if the tensor does not fit the model or the batch.

    Example:
        >>> with force_gates(model, True), torch.no_grad():
        ...     torch.allclose(model(images), source(images), atol=1e-5)
        True
    """
    found = controllers(model)
    chain = found[0].chain
    with chain.forced(_forcing(gates, found, seed)):
        yield


@contextmanager
def along_path(model: nn.Module, path: Tensor) -> Iterator[None]:
    """Run all images along one path, and compute nothing else, in training too.

    `force_gates` computes every sub-block in training, which gives every parameter a gradient.
    Here, parameters of sub-blocks that are off get none.

    Args:
        model: a converted model, or one that contains it.
        path: (total sub-blocks,) zeros and ones.

    Raises:
        ArgumentError: for a model that is not converted.
        GateMismatchError: if the path does not fit the model.
    """
    found = controllers(model)
    forcing = _checked(path.flatten(), found)
    if isinstance(forcing, _Alike):
        forcing.narrow = True
    with found[0].chain.forced(forcing):
        yield


def _forcing(gates: bool | float | Tensor, found: Sequence[GateController], seed: int) -> Forcing:
    sizes = found[0].chain.sizes
    if isinstance(gates, bool):
        gates = torch.full((sum(sizes),), float(gates))
    if isinstance(gates, Tensor):
        return _checked(gates, found)
    if isinstance(gates, int | float) and 0 <= gates <= 1:
        return _AtRate(float(gates), seed, len(sizes))
    raise ArgumentError(
        f"force_gates(gates={gates!r}): give True, False, a rate between 0 and 1, or a "
        f"(B, {sum(sizes)}) or ({sum(sizes)},) tensor of zeros and ones."
    )


def _checked(gates: Tensor, found: Sequence[GateController]) -> Forcing:
    sizes = found[0].chain.sizes
    if gates.dim() not in (1, 2) or gates.shape[-1] != sum(sizes):
        raise GateMismatchError(
            f"force_gates: gates of shape {tuple(gates.shape)}; this model has {sum(sizes)} "
            f"sub-blocks, so give (B, {sum(sizes)}), or ({sum(sizes)},) for all images alike."
        )
    if not torch.all((gates == 0) | (gates == 1)):
        raise GateMismatchError("force_gates: gates must be exact zeros and ones.")
    parts = gates.detach().clone().split(tuple(sizes), dim=-1)
    if gates.dim() == 2:
        return GivenGates(parts)
    running = [tuple(part.nonzero().flatten().tolist()) for part in parts]
    # If all are off, only the controller can tell which sub-block a block must keep.
    told = all(running[c.position] or not c.keep_one for c in found)
    return _Alike(parts, running if told else None)


class _AtRate(Forcing):
    def __init__(self, rate: float, seed: int, blocks: int) -> None:
        self.rate = rate
        self.generators = [torch.Generator().manual_seed(seed + i) for i in range(blocks)]

    def gates(self, position: int, batch: int, sizes: Sequence[int]) -> Tensor:
        drawn = torch.rand(batch, sizes[position], generator=self.generators[position])
        return (drawn < self.rate).float()


def given_gates(forcing: Forcing, batch: int, sizes: Sequence[int]) -> GivenGates:
    """Return the forced gates for one pass of a batch of B images, before it runs."""
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
    """Gates of all images.

    Args:
        parts: by block, (N,).
        running: by block, which of these are on; None if controllers have to be asked.

    Attributes:
        narrow: whether training, too, computes only these.
    """

    def __init__(self, parts: Sequence[Tensor], running: Sequence[tuple[int, ...]] | None) -> None:
        self.parts, self.running = parts, running
        self.narrow = False

    def path(self, position: int, *, training: bool) -> tuple[int, ...] | None:
        if self.running is None:
            return None
        path = self.running[position]
        whole = len(path) == len(self.parts[position])
        return path if whole or self.narrow or not training else None

    def gates(self, position: int, batch: int, sizes: Sequence[int]) -> Tensor:
        return self.parts[position].expand(batch, -1)
