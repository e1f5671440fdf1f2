"""The transforms of images before a network sees them, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor

from ..dryrun import described, own_size
from ..errors import ArgumentError
from ..optional import needed
from .options import DataOptions

Transform = Callable[[Any], Tensor]


_SMALL = 64
"""Images of up to so many pixels per side are padded and cropped rather than resized."""


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


_POLICIES = ("rand", "augmix", "original", "originalr", "v0", "v0r", "3a")


class Preprocessing(NamedTuple):
    """The form in which a network expects images.

    Attributes:
        side: pixels per side.
        mean: of each channel, of values from 0 to 1.
        std: likewise.
        crop_pct: share of a test image's side that is kept.
        interpolation: how images are resized, in timm's words.
    """

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    interpolation: str = "bilinear"


def image_size(options: DataOptions, model: Any) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of one image: the options', the architecture's, or ImageNet's."""
    channels, own, _ = own_size(model)
    side = options.input_size or own
    return channels, side, side


def preprocessing(options: DataOptions, model: Any, side: int | None = None) -> Preprocessing:
    """Return how images are prepared: as options say, else the architecture, else ImageNet's.

    Small images are kept whole in evaluation, unless the architecture is made for that size.

    Args:
        options: the input size, mean and deviation, where it gives them.
        model: what timm describes its images by, if it does.
        side: pixels per side; None for the options' or the model's.

    Raises:
        ArgumentError: for means that are not one for each channel.
    """
    own, (channels, given, _) = described(model), image_size(options, model)
    side = side or given
    mean = options.mean or tuple(own.get("mean") or _IMAGENET[0])
    std = options.std or tuple(own.get("std") or _IMAGENET[1])
    if len(mean) not in (1, channels):
        raise ArgumentError(
            f"preprocessing(mean={list(mean)}): gives {len(mean)} numbers, but images have "
            f"{channels} channels; give mean= and std= for each."
        )
    whole = side <= _SMALL and side != own_size(model)[-1]
    kept = 1.0 if whole else own.get("crop_pct") or 0.875
    return Preprocessing(side, mean, std, kept, own.get("interpolation") or "bilinear")


def training_transform(options: DataOptions, how: Preprocessing) -> Transform:
    """Return the augmentation of one PIL image into a tensor (C, H, W).

    Raises:
        ArgumentError: for an automatic augmentation that timm does not know.
    """
    _check_policy(options)
    padding = padding_of(options, how)
    try:
        composed = _resized(options, how) if padding is None else _padded(options, how, padding)
    except (AssertionError, KeyError, ValueError) as error:
        if options.auto_augment is None:
            raise
        raise _unknown(options, str(error)) from error
    _let_posterize_to_black(composed)
    transform: Transform = composed
    return transform


def padding_of(options: DataOptions, how: Preprocessing) -> int | None:
    """Return the padding in pixels of training images before they are cropped.

    None stands for crops of random size, which are resized.
    """
    crop = options.crop
    if crop == "auto":
        crop = "pad" if how.side <= _SMALL else "resize"
    return None if crop == "resize" else how.side // 8 if crop == "pad" else 0


def whole_image(how: Preprocessing) -> Callable[[Any], Any]:
    """Return the transform of one PIL image to the network's size, before augmentation."""
    T = needed("torchvision.transforms")
    mode = needed("timm.data.transforms").str_to_interp_mode(how.interpolation)
    made: Callable[[Any], Any] = T.Compose(
        [T.Resize(how.side, interpolation=mode), T.CenterCrop(how.side)]
    )
    return made


def _let_posterize_to_black(composed: Any) -> None:
    """Let timm's policies keep no bit of an image, which some ask for and Pillow 13 refuses."""
    for step in composed.transforms:
        ops = [*getattr(step, "ops", ()), *chain.from_iterable(getattr(step, "policy", ()))]
        for op in ops:
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterized


def _posterized(image: Any, bits: int, **options: Any) -> Any:
    if bits < 1:
        return image.point(lambda value: 0)
    return needed("timm.data.auto_augment").posterize(image, bits, **options)


def _check_policy(options: DataOptions) -> None:
    # timm takes every first word for one of its policies, or asserts.
    policy = options.auto_augment
    if policy is not None and policy.partition("-")[0] not in _POLICIES:
        raise _unknown(options, f"it starts with none of {', '.join(_POLICIES)}")


def _unknown(options: DataOptions, reason: str) -> ArgumentError:
    return ArgumentError(
        f"{options.call('auto_augment')}: timm has no such policy ({reason}); give one such as "
        "rand-m9-mstd0.5, or none."
    )


def _resized(options: DataOptions, how: Preprocessing) -> Any:
    return needed("timm.data").create_transform(
        how.side,
        is_training=True,
        hflip=0.5 * options.flip,
        color_jitter=0.0,
        auto_augment=options.auto_augment,
        re_prob=options.erase,
        mean=how.mean,
        std=how.std,
        interpolation=how.interpolation,
    )


def _padded(options: DataOptions, how: Preprocessing, padding: int) -> Any:
    T, timm = needed("torchvision.transforms"), needed("timm.data")
    steps = [*whole_image(how).transforms]  # type: ignore[attr-defined]
    if padding:
        steps.append(T.RandomCrop(how.side, padding=padding))
    if options.flip:
        steps.append(T.RandomHorizontalFlip())
    if options.auto_augment:
        steps.append(_policy(options.auto_augment, how))
    steps += [T.ToTensor(), T.Normalize(how.mean, how.std)]
    if options.erase:
        steps.append(timm.random_erasing.RandomErasing(options.erase, device="cpu"))
    return T.Compose(steps)


def _policy(policy: str, how: Preprocessing) -> Any:
    timm = needed("timm.data.auto_augment")
    makers = {"rand": timm.rand_augment_transform, "augmix": timm.augment_and_mix_transform}
    make = makers.get(policy.partition("-")[0], timm.auto_augment_transform)
    return make(policy, {"img_mean": tuple(round(255 * m) for m in how.mean)})


def test_transform(how: Preprocessing) -> Transform:
    """Return the transform of one PIL image into a tensor (C, H, W) for evaluation."""
    transform: Transform = needed("timm.data").create_transform(
        how.side,
        is_training=False,
        mean=how.mean,
        std=how.std,
        crop_pct=how.crop_pct,
        interpolation=how.interpolation,
    )
    return transform
