"""Distributed runs: shares of the images, and results gathered from all processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset, Subset

from .errors import ArgumentError, TrainingError
from .text import first_line

T = TypeVar("T")


def place() -> tuple[int, int]:
    """Return this process's rank and the number of processes: (0, 1) outside distributed runs."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def shard(dataset: Dataset[T]) -> Subset[T]:
    """Return this process's share of a data set: over all processes, every item exactly once.

    A `torch.utils.data.DistributedSampler` repeats items until all shares are equally long, which
    counts some images twice; these shares differ in length instead, by one at most.

    Args:
        dataset: the whole data set, the same in every process; it needs a length.

    Raises:
        ArgumentError: for a data set without a length.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> len(shard(TensorDataset(images, labels)))  # one process has all
        32
    """
    if not isinstance(dataset, Sized):
        raise ArgumentError(
            f"shard: a {type(dataset).__name__} has no length, so it cannot be shared out; let it "
            "yield each process's own items itself."
        )
    rank, count = place()
    return Subset(dataset, range(rank, len(dataset), count))


def summed(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, the same bits in each.

    Every process must call it, with a tensor of one shape; CPU tensors will do for any backend.
    """
    if place()[1] == 1:
        return values
    only_gpus = dist.get_backend() == "nccl" and not values.is_cuda
    total = values.to("cuda") if only_gpus else values.contiguous().clone()
    dist.all_reduce(total)
    return total.to(values.device)


def gathered(parts: Sequence[Tensor], empty: Tensor, device: torch.device) -> Tensor:
    """Return the rows (n, ...) of all processes on the CPU, in order of rank; n may differ.

    Every process must call it.

    Args:
        parts: this process's rows, on the CPU, in any number of parts.
        empty: what to take where there are no parts; of the same dtype and row shape.
        device: the process's accelerator, which the nccl backend needs.
    """
    rows = torch.cat(list(parts)) if parts else empty
    count = place()[1]
    if count == 1:
        return rows
    at = device if dist.get_backend() == "nccl" else torch.device("cpu")
    length = torch.tensor([len(rows)], device=at)
    lengths = [torch.zeros_like(length) for _ in range(count)]
    dist.all_gather(lengths, length)
    sizes = [int(n) for n in lengths]
    padded = torch.zeros(max(sizes), *rows.shape[1:], dtype=rows.dtype, device=at)
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)]).cpu()


def gathered_bytes(data: bytes, device: torch.device) -> list[bytes]:
    """Return the bytes of every process, in order of rank; all of them must call it.

    Args:
        data: this process's, of any length.
        device: the process's accelerator, which the nccl backend needs.
    """
    if place()[1] == 1:
        return [data]
    own = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else _NO_BYTES
    sizes = gathered([torch.tensor([len(data)])], torch.zeros(0, dtype=torch.long), device)
    whole = gathered([own], _NO_BYTES, device)
    return [part.numpy().tobytes() for part in whole.split(sizes.tolist())]


_NO_BYTES = torch.zeros(0, dtype=torch.uint8)


@dataclass(frozen=True)
class Processes:
    """The place of this process in a run.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        device: where its network lives.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set in any process; all must call it."""
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


_ENDED = "ended with an error"
"""The key under which a process that fails tells the others, whose calls to it then fail."""


@contextlib.contextmanager
def joined(device: str | None) -> Iterator[Processes]:
    """Join the processes that torchrun started, if it did; leave them afterwards.

    Args:
        device: "cpu", "cuda", "cuda:1", …; None takes a GPU where there is one.

    Raises:
        ArgumentError: if the device is not there.
        TrainingError: if another process ended with an error.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    place = _device(device, int(os.environ.get("LOCAL_RANK", 0)))
    processes = Processes(rank, count, place)
    if count == 1 or dist.is_initialized():
        yield processes
        return
    from torch.distributed.rendezvous import rendezvous  # not in every build of PyTorch

    store, *_ = next(rendezvous("env://"))
    backend = "nccl" if place.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count)
    try:
        yield processes
    except Exception as error:
        if isinstance(error, RuntimeError) and _another_ended(store):
            raise TrainingError(
                f"process {rank}: another process ended; its error says why."
            ) from error
        with contextlib.suppress(RuntimeError):  # the process that keeps the store may be gone
            store.set(_ENDED, str(rank))
        raise
    finally:
        dist.destroy_process_group()


def _another_ended(store: Any) -> bool:
    try:
        return bool(store.check([_ENDED]))
    except RuntimeError:
        return True  # the process that keeps the store is gone


def _device(name: str | None, local_rank: int) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ArgumentError(f"device={name!r}: {first_line(error)}") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ArgumentError(f"device={name!r}: PyTorch finds no GPU; use cpu.")
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device
