"""Batches run image by image, on several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor


class Workers:
    """Threads that each do one image's arithmetic alone, kept for the next batch.

    One image's values stay in a core's cache, and no thread waits for another after each layer;
    images that take different paths are never copied together.

    Args:
        count: of threads.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ThreadPoolExecutor | None = None
        self._owner = 0
        self._starting = threading.Lock()

    def __deepcopy__(self, memo: dict[int, object]) -> Workers:
        return Workers(self.count)

    def map(self, call: Callable[[Tensor, int], Tensor], images: Tensor) -> Tensor:
        """Return the results of `call` on each image (1, C, H, W) and its index, as one tensor."""
        parts = list(enumerate(images.split(1)))
        if self.count == 1:
            return torch.cat([call(image, i) for i, image in parts])
        pool = self._ready()
        waiting = [pool.submit(call, image, i) for i, image in parts]
        try:
            return torch.cat([future.result() for future in waiting])
        finally:  # after an error nothing keeps running in the background
            for future in waiting:
                future.cancel()
            wait(waiting)

    def _ready(self) -> ThreadPoolExecutor:
        with self._starting:
            # A forked process has none of its parent's threads.
            if self._pool is None or self._owner != os.getpid():
                self._pool, self._owner = _started(self.count), os.getpid()
            return self._pool


def _started(count: int) -> ThreadPoolExecutor:
    """Return a pool of threads in which PyTorch uses one thread."""
    before = torch.get_num_threads()
    all_there = threading.Barrier(count + 1)

    def start() -> None:
        torch.get_num_threads()  # a thread whose number was never read overwrites the next setting
        torch.set_num_threads(1)
        all_there.wait()

    pool = ThreadPoolExecutor(count, "dmnn_convert", initializer=start)
    try:
        for _ in range(count):
            pool.submit(int)
        all_there.wait()
    except BaseException:
        all_there.abort()
        pool.shutdown(wait=False)
        raise
    finally:
        # This sets the number for all threads that start from now on, and the workers set it to 1.
        torch.set_num_threads(before)
    return pool


def is_divisible(run: Callable[[Tensor], Any], image: Tensor) -> bool:
    """Return whether images give the same rows one by one as together.

    Args:
        run: of images (B, C, H, W).
        image: (1, C, H, W); another one is drawn.
    """
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    images = [image, noise.to(image).contiguous(memory_format=torch.channels_last)]
    pair = torch.cat(images).contiguous(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            together, apart = run(pair), torch.cat([run(one) for one in images])
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False  # it returns no tensor, or cannot run one image
    alike = isinstance(together, Tensor) and together.shape == apart.shape
    tolerance = 1e-3 * float(apart.abs().max())
    return alike and torch.allclose(together, apart, atol=tolerance, rtol=0)
