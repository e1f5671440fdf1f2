"""Test batches, and the files of the images in them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from ..data import Batch, DataOptions, file_of
from ..distributed import Processes


class NamedBatches:
    """The batches of `test_loader`, with the names of their images in order.

    Args:
        loader: this process's test batches.
        images: their data set.
        options: where the images are.
        processes: the place of this process.
    """

    def __init__(
        self, loader: Iterable[Batch], images: Any, options: DataOptions, processes: Processes
    ) -> None:
        self.loader, self.images, self.options = loader, images, options
        self.mine = range(processes.rank, len(images), processes.count)
        self._waiting: deque[str] = deque()

    def __iter__(self) -> Iterator[Batch]:
        self._waiting.clear()
        files = (file_of(self.images, i) for i in self.mine)
        for batch in self.loader:
            bad = {image.file for image in batch.bad}
            own = [next(files) for _ in range(len(batch.labels) + len(batch.bad))]
            self._waiting.extend(file for file in own if file not in bad)
            yield batch

    def names(self) -> Iterator[str]:
        """Yield the file of each image of the batches so far, within the folder of the data."""
        while True:
            yield os.path.relpath(self._waiting.popleft(), self.options.data)
