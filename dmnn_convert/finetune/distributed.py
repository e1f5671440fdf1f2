"""The processes of one run: one alone, or those that torchrun started."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ..errors import ArgumentError, TrainingError


@dataclass(frozen=True)
class Processes:
    """Which process this is.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        device: where its network lives.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return, of each flag, whether it is set in any process; all must call it."""
        return tuple(self.rows(torch.tensor(flags, dtype=torch.float32)).bool().any(0).tolist())

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """Return the tensors (n,) of all processes on the CPU, (processes, n); all must call it."""
        if self.count == 1:
            return values.detach().cpu()[None]
        own = values.detach().to(self.device)
        rows = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(rows, own)
        return torch.stack(rows).cpu()

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every process the first one's values."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)


_LEFT = re.compile("connection (closed|reset) by peer|connection refused", re.IGNORECASE)
"""What gloo says of a process that is gone."""


@contextlib.contextmanager
def joined(device: str | None) -> Iterator[Processes]:
    """Join the processes that torchrun started, if it did; leave them afterwards.

    Args:
        device: "cpu", "cuda", "cuda:1", …; None takes a GPU where there is one.

    Raises:
        ArgumentError: if the device is not there.
        TrainingError: if another process is gone.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    place = _device(device, int(os.environ.get("LOCAL_RANK", 0)))
    started = count > 1 and not dist.is_initialized()
    if started:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(rank, count, place)
    except RuntimeError as error:
        if started and _LEFT.search(str(error)):
            raise TrainingError(
                f"process {rank}: another one ended; its error says why."
            ) from error
        raise
    finally:
        if started:
            dist.destroy_process_group()


def _device(name: str | None, local_rank: int) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ArgumentError(f"Recipe(device={name!r}): {str(error).splitlines()[0]}") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ArgumentError(f"Recipe(device={name!r}): PyTorch finds no GPU; use cpu.")
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device
