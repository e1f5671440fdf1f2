"""Images: data sets, and batches that come again exactly after a restart.

What augmentation draws depends on (seed, epoch, image) alone, and the order on (seed, epoch). So
neither the number of loader processes nor an interruption changes what a step sees.
"""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from ..errors import ArgumentError
from .augmentation import Transform
from .distributed import Processes
from .extra import needed
from .image_files import picture
from .recipe import Recipe

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


def open_data(recipe: Recipe) -> Data:
    """Open the data set that a recipe names.

    Raises:
        ArgumentError: if it is not there, or is not made of folders of classes.
    """
    root = _root(recipe)
    train, test = _opened(root, recipe.dataset, _TRAIN), _opened(root, recipe.dataset, _TEST)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ArgumentError(
            f"{root}: {len(train.classes)} classes to train on, {len(test.classes)} to evaluate "
            f"on; these are in one of both only: {', '.join(odd[:5])}."
        )
    kept, held_out = _parted(train, recipe.held_out)
    return Data(kept, test, tuple(train.classes), held_out)


def _parted(images: Any, share: float) -> tuple[Dataset[Any], Dataset[Any]]:
    """Hold out a share of the images, the same ones in every run."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    count = round(share * len(images))
    kept = Subset(images, sorted(order[count:])) if count else images
    return kept, Subset(images, sorted(order[:count]))


def open_test(recipe: Recipe) -> tuple[Dataset[Any], tuple[str, ...]]:
    """Open the images to evaluate on alone; return them and the names of their classes.

    Raises:
        ArgumentError: if they are not there, or not in folders of classes.
    """
    test = _opened(_root(recipe), recipe.dataset, _TEST)
    return test, tuple(test.classes)


def _root(recipe: Recipe) -> Path:
    if recipe.data is None:
        raise ArgumentError("Recipe(data=None): give the folder of the images, --data DIR.")
    root = Path(recipe.data)
    if not root.is_dir():
        raise ArgumentError(f"Recipe(data={recipe.data!r}): there is no such folder.")
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
            "give --dataset folder for images in folders, one a class."
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
    """Batches of one epoch, as often as they are asked for."""

    def __len__(self) -> int:
        """Return how many batches come."""

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
        except Exception as error:  # a foreign file can fail in any way at all
            return bad_image(self.images, index, error)
        try:
            with drawn_from(self.seed, epoch, index):
                return self.transform(image), int(label)
        except (OSError, EOFError, SyntaxError, ValueError, MemoryError) as error:
            return bad_image(self.images, index, error)  # PIL reads some files as late as that


def bad_image(images: Dataset[Any], index: int, error: Exception) -> BadImage:
    """Return what stands for an image that cannot be read, with the file and the reason."""
    reason = str(error).splitlines() or [type(error).__name__]
    return BadImage(file_of(images, index), reason[0])


def file_of(images: Dataset[Any], index: int) -> str:
    """Return the file of an image, or its number."""
    if isinstance(images, Subset):
        return file_of(images.dataset, images.indices[index])
    samples = getattr(images, "samples", None)
    return str(samples[index][0]) if samples else f"image {index}"


@contextlib.contextmanager
def drawn_from(*key: int) -> Iterator[None]:
    """Draw every random number inside from the key; put the generators back afterwards."""
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    seed = int(numpy.random.SeedSequence(key).generate_state(1)[0])
    # torch.manual_seed would also note down, with a stack trace, what to do once CUDA starts: slow,
    # and kept for ever, where this is called for every image.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    numpy.random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        numpy.random.set_state(states[2])


def collate(samples: Sequence[tuple[Tensor, int] | BadImage]) -> Batch:
    """Stack what could be read."""
    bad = tuple(s for s in samples if isinstance(s, BadImage))
    good = [s for s in samples if not isinstance(s, BadImage)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    return Batch(images, torch.tensor([label for _, label in good], dtype=torch.long), bad)


def checked(batch: Batch, recipe: Recipe) -> Batch:
    """Return a batch as it is, unless an image in it could not be read and that is to stop.

    Raises:
        ArgumentError: for an image that cannot be read, or a whole batch of them.
    """
    if not batch.bad or (recipe.on_bad_image == "skip" and len(batch.labels)):
        return batch
    file, reason = batch.bad[0]
    remedy = "Repair or remove it, or leave such images out with --on-bad-image skip."
    if recipe.on_bad_image == "skip":
        remedy = f"So are all {len(batch.bad)} of its batch: repair or remove them."
    raise ArgumentError(f"{file}: cannot be read ({reason}). {remedy}")


def readable(batches: Iterable[Batch], recipe: Recipe) -> Iterator[Batch]:
    """Yield batches, each as `checked`."""
    return (checked(batch, recipe) for batch in batches)


class EpochOrder(Sampler[tuple[int, int]]):
    """The keys of one epoch after another, each in an order of its own.

    All processes share one order, of which each takes every world-th key, so that a step sees the
    same images however many processes there are.

    Attributes:
        epoch: which one comes next.
        start: how many keys of it to leave out (a run that goes on in the middle).
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
    recipe: Recipe, images: Dataset[Any], transform: Transform, processes: Processes
) -> tuple[DataLoader[Any], EpochOrder]:
    """Return batches of this process's share, and the order that says where they start.

    Raises:
        ArgumentError: if a step has fewer images than there are processes, or the set too few.
    """
    share, odd = divmod(recipe.batch_size, processes.count)
    if odd or not share:
        raise ArgumentError(
            f"Recipe(batch_size={recipe.batch_size}): is over all processes, of which there are "
            f"{processes.count}; give a multiple of that."
        )
    augmented = Augmented(images, transform, recipe.seed)
    if len(augmented) < recipe.batch_size:
        raise ArgumentError(
            f"Recipe(batch_size={recipe.batch_size}): there are only {len(augmented)} images to "
            "train on; give a smaller batch."
        )
    order = EpochOrder(augmented, recipe.seed, processes)
    loader: DataLoader[Any] = DataLoader(
        augmented,
        share,
        sampler=order,
        drop_last=True,
        num_workers=recipe.workers,
        collate_fn=collate,
        persistent_workers=recipe.workers > 0,
        worker_init_fn=leave_signals,
        pin_memory=torch.cuda.is_available(),
    )
    return loader, order


def test_loader(
    recipe: Recipe, images: Dataset[Any], transform: Transform, processes: Processes
) -> DataLoader[Any]:
    """Return batches of this process's share of the images, each of them once over all."""
    keys = [(0, i) for i in range(processes.rank, len(images), processes.count)]  # type: ignore[arg-type]
    share = max(recipe.batch_size // processes.count, 1)
    return DataLoader(
        Subset(Augmented(images, transform, recipe.seed), keys),  # type: ignore[arg-type]
        share,
        num_workers=recipe.workers,
        collate_fn=collate,
        worker_init_fn=leave_signals,
        pin_memory=torch.cuda.is_available(),
    )


def leave_signals(_: int) -> None:
    """Let a loader process ignore what stops a run: its parent ends it in time."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
