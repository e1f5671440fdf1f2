"""Images that are decoded once and stay in memory; whole batches are cropped and flipped.

Draws for an image depend only on (seed, epoch, image), as they do for images read from files, but
they are different draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ArgumentError
from ..progress import tracked
from .images import BadImage, Batch, bad_image
from .loaders import EpochOrder
from .options import DataOptions
from .transforms import Preprocessing, padding_of, whole_image


class KeptBatches:
    """The batches of a loader whose images never change, kept after the first pass.

    Args:
        loader: yields them.
    """

    def __init__(self, loader: Iterable[Batch]) -> None:
        self.loader = loader
        self.batches: list[Batch] = []
        self.complete = False

    def __iter__(self) -> Iterator[Batch]:
        if self.complete:
            yield from self.batches
            return
        self.batches = []
        for batch in self.loader:
            self.batches.append(batch)
            yield batch
        self.complete = True


class MemoryBatches:
    """Training batches from decoded images, padded, cropped and flipped as options say.

    Args:
        options: which of these, and the seed.
        images: yields (PIL image, label).
        how: size, mean and deviation.
        order: which images come next; its share of a batch is this process's.
        share: how many images a batch has in this process.
        shown: whether to show a bar while images are read.

    Raises:
        ArgumentError: for an augmentation that is made image by image.
    """

    def __init__(
        self,
        options: DataOptions,
        images: Dataset[Any],
        how: Preprocessing,
        order: EpochOrder,
        share: int,
        *,
        shown: bool,
    ) -> None:
        check_in_memory(options, how)
        self.options, self.order, self.share = options, order, share
        self.padding = padding_of(options, how) or 0
        self.bad: dict[int, BadImage] = {}
        self.images, self.labels = self._read(images, whole_image(how), shown=shown)
        channels = self.images.shape[1]
        mean, std = (torch.tensor(x).expand(channels).view(-1, 1, 1) for x in (how.mean, how.std))
        self.mean, self.std = 255 * mean, 255 * std

    def _read(
        self, images: Dataset[Any], whole: Callable[[Any], Any], *, shown: bool
    ) -> tuple[Tensor, Tensor]:
        count = len(images)  # type: ignore[arg-type]
        pixels: Tensor | None = None
        labels = torch.zeros(count, dtype=torch.long)
        for i in tracked(range(count), "read images", shown=shown):
            try:
                image, label = images[i]
                values = numpy.asarray(whole(image))
            except Exception as error:  # a foreign file can fail in any way at all
                self.bad[i] = bad_image(images, i, error)
                continue
            one = torch.from_numpy(values.reshape(*values.shape[:2], -1).copy()).permute(2, 0, 1)
            if pixels is None:
                pixels = torch.zeros(count, *one.shape, dtype=torch.uint8)
            pixels[i], labels[i] = one, int(label)
        if pixels is None:
            file, reason = next(iter(self.bad.values()))
            raise ArgumentError(f"{file}: cannot be read ({reason}), nor can any other image.")
        return pixels, labels

    def __len__(self) -> int:
        return len(self.order) // self.share

    def __iter__(self) -> Iterator[Batch]:
        keys = iter(self.order)
        for _ in range(len(self)):
            some = list(islice(keys, self.share))
            yield self._batch(some[0][0], torch.tensor([index for _, index in some]))

    def _batch(self, epoch: int, rows: Tensor) -> Batch:
        bad = tuple(self.bad[i] for i in rows.tolist() if i in self.bad)
        if bad:
            rows = torch.tensor([i for i in rows.tolist() if i not in self.bad], dtype=torch.long)
        images = self._augmented(epoch, rows)
        return Batch(images.sub_(self.mean).div_(self.std), self.labels[rows], bad)

    def _augmented(self, epoch: int, rows: Tensor) -> Tensor:
        """Return images (B, C, H, W) of values from 0 to 255, cropped and flipped."""
        images = self.images[rows].float()
        draws = torch.Generator().manual_seed(self.options.seed * 100_003 + epoch + 1)
        count, side = len(self.images), 2 * self.padding + 1
        corners = torch.randint(side, (count, 2), generator=draws)[rows]
        flips = torch.rand(count, generator=draws)[rows] < 0.5
        if self.padding:
            height, width = images.shape[-2:]
            padded = F.pad(images, [self.padding] * 4)
            down = corners[:, :1] + torch.arange(height)
            right = corners[:, 1:] + torch.arange(width)
            each = torch.arange(len(rows))[:, None, None]
            picked = padded[each, :, down[:, :, None], right[:, None, :]]
            images = picked.permute(0, 3, 1, 2).contiguous()
        if self.options.flip:
            images = torch.where(flips[:, None, None, None], images.flip(-1), images)
        return images


def check_in_memory(options: DataOptions, how: Preprocessing) -> None:
    """Check that the options' augmentation can be made of whole batches.

    Raises:
        ArgumentError: if not.
    """
    odd = {"--auto-augment": options.auto_augment, "--erase": options.erase}
    odd["--crop resize"] = padding_of(options, how) is None
    found = [name for name, value in odd.items() if value]
    if found:
        raise ArgumentError(
            f"{options.call('in_memory')}: {' and '.join(found)} works image by image; leave "
            "--in-memory out, or that."
        )
