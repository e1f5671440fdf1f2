"""Loaders of training and test batches."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from ..distributed import Processes
from ..errors import ArgumentError
from .images import Augmented, collate
from .options import DataOptions
from .transforms import Transform


class LoaderDiedError(RuntimeError):
    """A loader process ended, which broke the pipe to it."""


class _Batches(DataLoader[Any]):
    """A loader whose errors say if one of its processes died."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except (ConnectionError, EOFError) as error:
            if not self.num_workers:
                raise
            # An image's own errors arrive as `BadImage`: only a pipe is left to raise this.
            raise LoaderDiedError(str(error) or type(error).__name__) from error


class EpochOrder(Sampler[tuple[int, int]]):
    """The keys of one epoch after another, each in an order of its own.

    All processes share one order, of which each takes every world-th key, so that a step sees the
    same images however many processes there are.

    Attributes:
        epoch: which one comes next.
        start: how many keys of it to leave out (in a run resumed in the middle).
    """

    def __init__(self, images: Sized, seed: int, processes: Processes) -> None:
        self.length, self.seed, self.processes = len(images), seed, processes
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return (self.length - self.start) // self.processes.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator)[self.start :]
        mine = order[self.processes.rank :: self.processes.count]
        for index in mine[: len(self)].tolist():
            yield self.epoch, index


def training_loader(
    options: DataOptions, images: Dataset[Any], transform: Transform, processes: Processes
) -> tuple[DataLoader[Any], EpochOrder]:
    """Return batches of this process's share, and the order that says where they start.

    Raises:
        ArgumentError: if a step has fewer images than there are processes, or the set too few.
    """
    share, odd = divmod(options.batch_size, processes.count)
    if odd or not share:
        raise ArgumentError(
            f"{options.call('batch_size')}: counts the images of all {processes.count} processes; "
            f"give a multiple of {processes.count}."
        )
    augmented = Augmented(images, transform, options.seed)
    if len(augmented) < options.batch_size:
        raise ArgumentError(
            f"{options.call('batch_size')}: there are only {len(augmented)} images to "
            "train on; give a smaller batch."
        )
    order = EpochOrder(augmented, options.seed, processes)
    loader = _Batches(
        augmented,
        share,
        sampler=order,
        drop_last=True,
        num_workers=options.workers,
        collate_fn=collate,
        persistent_workers=options.workers > 0,
        worker_init_fn=leave_signals,
        pin_memory=torch.cuda.is_available(),
    )
    return loader, order


def test_loader(
    options: DataOptions, images: Dataset[Any], transform: Transform, processes: Processes
) -> DataLoader[Any]:
    """Return batches of this process's share of the images, each of them once over all."""
    keys = [(0, i) for i in range(processes.rank, len(images), processes.count)]  # type: ignore[arg-type]
    share = max(options.batch_size // processes.count, 1)
    return _Batches(
        Subset(Augmented(images, transform, options.seed), keys),  # type: ignore[arg-type]
        share,
        num_workers=options.workers,
        collate_fn=collate,
        worker_init_fn=leave_signals,
        pin_memory=torch.cuda.is_available(),
    )


def leave_signals(_: int) -> None:
    """Let a loader process ignore what stops a run: its parent ends it in time."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
