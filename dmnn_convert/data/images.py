"""Images: data sets, and batches that are the same after a restart.

Augmentation depends only on (seed, epoch, image), and the order only on (seed, epoch). So neither
the number of loader processes nor an interruption changes the images of a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..errors import ArgumentError
from ..optional import needed
from ..text import first_line
from .image_files import picture
from .options import DataOptions
from .seeding import drawn_from
from .transforms import Transform

_TRAIN, _TEST = ("train",), ("val", "valid", "validation", "test")


@dataclass(frozen=True)
class Data:
    """Images to train on and to evaluate on.

    Attributes:
        train: yields (PIL image, label).
        test: yields (PIL image, label).
        classes: their names, in order of the labels.
        held_out: yields (PIL image, label), of training images that are not trained on.
    """

    train: Dataset[Any]
    test: Dataset[Any]
    classes: tuple[str, ...]
    held_out: Dataset[Any]


def open_data(options: DataOptions) -> Data:
    """Open the data set that the options name.

    Raises:
        ArgumentError: if it is not there, or is not made of folders of classes.
    """
    root = _root(options)
    train, test = _opened(root, options.dataset, _TRAIN), _opened(root, options.dataset, _TEST)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ArgumentError(
            f"{root}: {len(train.classes)} classes to train on, {len(test.classes)} to evaluate "
            f"on; these are in only one of them: {', '.join(odd[:5])}."
        )
    kept, held_out = _parted(train, options.held_out)
    return Data(kept, test, tuple(train.classes), held_out)


def _parted(images: Any, share: float) -> tuple[Dataset[Any], Dataset[Any]]:
    """Hold out a share of the images, the same ones in every run."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    count = round(share * len(images))
    kept = Subset(images, sorted(order[count:])) if count else images
    return kept, Subset(images, sorted(order[:count]))


def open_test(options: DataOptions) -> tuple[Dataset[Any], tuple[str, ...]]:
    """Open the images to evaluate on alone; return them and the names of their classes.

    Raises:
        ArgumentError: if they are not there, or not in folders of classes.
    """
    test = _opened(_root(options), options.dataset, _TEST)
    return test, tuple(test.classes)


def _root(options: DataOptions) -> Path:
    if options.data is None:
        raise ArgumentError(f"{options.call('data')}: give the folder of the images, --data DIR.")
    root = Path(options.data)
    if not root.is_dir():
        raise ArgumentError(f"{options.call('data')}: there is no such folder.")
    return root


def _opened(root: Path, dataset: str, names: Sequence[str]) -> Any:
    if dataset != "folder":
        return _cifar(root, dataset, train=names is _TRAIN)
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        raise ArgumentError(
            f"{root}: has no folder {' or '.join(n + '/' for n in names)}; give a folder with "
            "train/ and val/ or test/, each with a folder of images for every class."
        )
    try:
        return needed("torchvision.datasets").ImageFolder(str(folder), loader=picture)
    except FileNotFoundError as error:
        raise ArgumentError(
            f"{folder}: {str(error).rstrip('.')}. Give a folder of images for every class."
        ) from error


def _cifar(root: Path, name: str, *, train: bool) -> Any:
    datasets = needed("torchvision.datasets")
    cls = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        return cls(str(root), train=train)
    except RuntimeError as error:
        raise ArgumentError(
            f"{root}: holds no {name} as torchvision reads it; download and unpack it there, or "
            "give --dataset folder for images in folders, one per class."
        ) from error


class BadImage(NamedTuple):
    """An image that cannot be read, and why."""

    file: str
    reason: str


class Batch(NamedTuple):
    """Images (B, C, H, W), labels (B,), and those that could not be read."""

    images: Tensor
    labels: Tensor
    bad: tuple[BadImage, ...]


class Loader(Protocol):
    """Batches of one epoch, which can be iterated over repeatedly."""

    def __len__(self) -> int:
        """Return the number of batches."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield them."""


class Augmented(Dataset[Any]):
    """Images under a transform that draws from (seed, epoch, index) alone.

    Keys are (epoch, index); an image that cannot be read comes as a `BadImage`.
    """

    def __init__(self, images: Dataset[Any], transform: Transform, seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | BadImage:
        epoch, index = key
        try:
            image, label = self.images[index]
        except Exception as error:  # a foreign file can fail in any way
            return bad_image(self.images, index, error)
        try:
            with drawn_from(self.seed, epoch, index):
                return self.transform(image), int(label)
        except (OSError, EOFError, SyntaxError, ValueError, MemoryError) as error:
            return bad_image(self.images, index, error)  # PIL reads some files as late as that


def bad_image(images: Dataset[Any], index: int, error: Exception) -> BadImage:
    """Return the stand-in for an unreadable image, with the file and the reason."""
    return BadImage(file_of(images, index), first_line(error))


def file_of(images: Dataset[Any], index: int) -> str:
    """Return the file of an image, or its number."""
    if isinstance(images, Subset):
        return file_of(images.dataset, images.indices[index])
    samples = getattr(images, "samples", None)
    return str(samples[index][0]) if samples else f"image {index}"


def collate(samples: Sequence[tuple[Tensor, int] | BadImage]) -> Batch:
    """Stack the images that could be read."""
    bad = tuple(s for s in samples if isinstance(s, BadImage))
    good = [s for s in samples if not isinstance(s, BadImage)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    return Batch(images, torch.tensor([label for _, label in good], dtype=torch.long), bad)


def checked(batch: Batch, options: DataOptions) -> Batch:
    """Return a batch as it is, unless an image in it could not be read and that is to stop.

    Raises:
        ArgumentError: for an image that cannot be read, or a whole batch of them.
    """
    if not batch.bad or (options.on_bad_image == "skip" and len(batch.labels)):
        return batch
    file, reason = batch.bad[0]
    remedy = "Repair or remove it, or leave such images out with --on-bad-image skip."
    if options.on_bad_image == "skip":
        remedy = f"So are all {len(batch.bad)} of its batch: repair or remove them."
    raise ArgumentError(f"{file}: cannot be read ({reason}). {remedy}")


class Readable:
    """Batches, each `checked`, which can be iterated over repeatedly."""

    def __init__(self, batches: Iterable[Batch], options: DataOptions) -> None:
        self.batches, self.options = batches, options

    def __iter__(self) -> Iterator[Batch]:
        return (checked(batch, self.options) for batch in self.batches)
