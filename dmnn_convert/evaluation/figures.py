"""The figures of an evaluation: frozen, with a JSON round trip."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..foreign import parsed_json

Own = TypeVar("Own", bound="DenseEvaluation")


PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


BINS = 100
"""Number of bins of the histogram of gated FLOPs ratios, over 0..1."""


@dataclass(frozen=True)
class Spread:
    """The spread of a figure over the images.

    Attributes:
        mean: over all images.
        std: standard deviation over the images (of these images, not an estimate for others).
        p1: the value that 1 % of the images stay below; so do the others, with linear
            interpolation between neighbours.
    """

    mean: float
    std: float
    p1: float
    p5: float
    p25: float
    p50: float
    p75: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Tensor) -> Spread:
        """Return the spread of values (B,), whatever their order."""
        ordered = values.double().sort().values
        at = torch.tensor(PERCENTILES, dtype=torch.float64) / 100 * (len(ordered) - 1)
        below, part = at.long(), at.frac()
        above = (below + 1).clamp_max(len(ordered) - 1)
        percentiles = ordered[below].lerp(ordered[above], part).tolist()
        return cls(float(ordered.mean()), float(ordered.std(correction=0)), *percentiles)

    def over(self, whole: float) -> Spread:
        """Return the spread of the same values divided by `whole`."""
        return Spread(**{name: value / whole for name, value in asdict(self).items()})


@dataclass(frozen=True)
class DenseEvaluation:
    """The figures of any classifier on a set of images.

    Attributes:
        images: number of images, over all processes.
        top1: images whose label has the largest logit, in percent.
        top5: images whose label is among the five largest, in percent; None below six classes.
        loss: mean cross-entropy in nats, without the images of `nan_images`; None if all are.
        nan_images: images whose logits hold a NaN or whose cross-entropy is not finite; they count
            as wrong.
        classes: names of the classes.
        class_images: number of images of each class.
        class_top1: top-1 of each class, in percent; None for a class without images.
        images_per_second: images over seconds (wall clock) of the forward passes, with images on
            the device and until logits are on the CPU, the slower first batch included; of all
            processes together. It does not count when evaluations are compared by ==.
    """

    images: int
    top1: float
    top5: float | None
    loss: float | None
    nan_images: int
    classes: tuple[str, ...]
    class_images: tuple[int, ...]
    class_top1: tuple[float | None, ...]
    images_per_second: float = field(compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation as plain values that JSON can hold."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the evaluation as JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls: type[Own], values: Mapping[str, Any]) -> Own:
        """Rebuild an evaluation from `to_dict`'s values.

        Raises:
            ArgumentError: if they are not an evaluation's.
        """
        try:
            return cls(**{f.name: _frozen(values[f.name]) for f in fields(cls)})
        except (KeyError, TypeError) as error:
            raise ArgumentError(
                f"{cls.__name__}.from_dict: not what to_dict gave ({error!r})."
            ) from error

    @classmethod
    def from_json(cls: type[Own], text: str) -> Own:
        """Rebuild an evaluation from `to_json`'s text.

        Raises:
            ArgumentError: if the text is not an evaluation's.
        """
        try:
            values = parsed_json(text)
        except (ValueError, TypeError) as error:
            raise ArgumentError(
                f"{cls.__name__}.from_json: not valid JSON ({error}); give what to_json returned."
            ) from error
        return cls.from_dict(values)


@dataclass(frozen=True)
class Evaluation(DenseEvaluation):
    """The figures of a converted model on a set of images, and the paths that they take.

    A path is an image's whole gate vector. FLOPs are multiply-accumulates of one image.

    Attributes:
        macs: MACs of the whole network.
        gated_macs: MACs of the sub-blocks and trunks.
        network_flops_ratio: MACs of the whole network over the source's.
        flops_ratio: gated MACs over those with all gates on.
        flops_histogram: number of images by `flops_ratio`, in 100 equal parts of 0..1.
        class_flops_ratio: mean `flops_ratio` of each class; None for a class without images.
        blocks: names of the blocks, in gate order.
        sizes: number of sub-blocks of each block.
        sub_block_rates: share of the images for which each sub-block ran, in gate order.
        distinct_paths: number of paths that some image took.
        path_entropy: entropy of the paths, in bits.
        class_entropy: entropy of the labels, in bits.
        mutual_information: information that path and label share, in bits: the plug-in
            estimate, which comes near `class_entropy` if most paths are taken by one image only.
        chance_information: the mean of the same over all ways to shuffle the labels, in bits. The
            excess of `mutual_information` over it is not due to the number of paths.
        frequent_path: gates of the most frequent path (of several such, the first when sorted).
        frequent_path_share: share of the images that took it.
    """

    macs: Spread
    gated_macs: Spread
    network_flops_ratio: Spread
    flops_ratio: Spread
    flops_histogram: tuple[int, ...]
    class_flops_ratio: tuple[float | None, ...]
    blocks: tuple[str, ...]
    sizes: tuple[int, ...]
    sub_block_rates: tuple[float, ...]
    distinct_paths: int
    path_entropy: float
    class_entropy: float
    mutual_information: float
    chance_information: float
    frequent_path: tuple[int, ...]
    frequent_path_share: float

    @property
    def sub_blocks(self) -> tuple[tuple[str, int], ...]:
        """Block and number of each sub-block, in gate order."""
        named = zip(self.blocks, self.sizes, strict=True)
        return tuple((block, n) for block, size in named for n in range(size))

    @property
    def execution_rates(self) -> tuple[float, ...]:
        """Execution rate of each block: the mean of its sub-blocks'."""
        parts = torch.tensor(self.sub_block_rates, dtype=torch.float64).split(self.sizes)
        return tuple(float(part.mean()) for part in parts)

    @property
    def always_on(self) -> tuple[tuple[str, int], ...]:
        """Sub-blocks (block, number) that ran for every image."""
        return self._at(1.0)

    @property
    def never_on(self) -> tuple[tuple[str, int], ...]:
        """Sub-blocks (block, number) that ran for no image."""
        return self._at(0.0)

    @property
    def frozen_path(self) -> Tensor:
        """Gates of the most frequent path, (total sub-blocks,) float32.

        ``with force_gates(model, evaluation.frozen_path): evaluate(model, table, loader)`` tells
        what a static network of the same cost would do.
        """
        return torch.tensor(self.frequent_path, dtype=torch.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation, with derived figures, as plain values for JSON."""
        derived = ("execution_rates", "always_on", "never_on")
        return {**super().to_dict(), **{name: getattr(self, name) for name in derived}}

    def _at(self, rate: float) -> tuple[tuple[str, int], ...]:
        rates = zip(self.sub_blocks, self.sub_block_rates, strict=True)
        return tuple(sub_block for sub_block, own in rates if own == rate)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Spread(**value)
    return tuple(value) if isinstance(value, list | tuple) else value
