"""What the processes of a distributed run share: the images, and what they found about them."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset, Subset

from .errors import ArgumentError

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
