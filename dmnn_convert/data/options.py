"""The options of data sets, transforms and loaders."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import MOST_SEED, Options, option
from ..errors import ArgumentError


@dataclass(frozen=True)
class DataOptions(Options):
    """Which images, how they are prepared, and how they come in batches; see each option's help.

    Raises:
        ArgumentError: for a value of another kind or out of range.
    """

    input_size: int | None = option(
        None,
        "One image, square and in three channels: 224, 3x224x224 or 3,224,224; a file of options "
        "takes the first.  [the architecture's own]",
        least=1,
    )
    data: str | None = option(None, "Folder with train/ and val/ or test/, a folder per class.")
    dataset: str = option(
        "folder",
        "Content of --data: images in folders, or torchvision's CIFAR files.",
        choices=("folder", "cifar10", "cifar100"),
    )
    crop: str = option(
        "auto",
        "pad: pad by an eighth and crop; resize: random resized crop; auto: pad up to 64 pixels.",
        choices=("auto", "pad", "resize", "none"),
    )
    flip: bool = option(True, "Mirror half of the training images.")
    auto_augment: str | None = option(None, "timm's policy, e.g. rand-m9-mstd0.5.")
    erase: float = option(0.0, "Probability of random erasing.", least=0, most=1)
    mean: tuple[float, ...] = option((), "Mean of each channel.  [the architecture's, ImageNet's]")
    std: tuple[float, ...] = option((), "Deviation of each channel.  [likewise]", above=0)
    on_bad_image: str = option(
        "stop", "Stop at images that cannot be read, or skip them.", choices=("stop", "skip")
    )
    held_out: float = option(
        0.0,
        "Share of the training images to keep out of training, for choices made afterwards.",
        least=0,
        below=1,
    )
    in_memory: bool = option(
        False,
        "Decode all images once and keep them; crop and flip whole batches, with the same "
        "distribution but other draws.",
    )
    workers: int = option(2, "Loader processes.", least=0)
    batch_size: int = option(128, "Images per step, over all processes.", least=1)
    seed: int = option(0, "Seed of everything that is random.", least=0, most=MOST_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mean) != len(self.std):
            raise ArgumentError(
                f"{self.call('mean', 'std')}: give both mean= and std=, with a number for each "
                "channel, or neither."
            )
