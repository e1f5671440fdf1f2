"""The easiest and the hardest images of each class, as small pictures."""

from __future__ import annotations

import base64
import bisect
import io
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..optional import needed

SIDE = 64
"""Most pixels of a picture's longer side."""


class Shown(NamedTuple):
    """An image that is shown.

    Attributes:
        order: the sort key from easy to hard: FLOPs ratio, then doubt, then its number.
        caption: its row of the report, by column.
        picture: JPEG as base64 text.
    """

    order: tuple[float, float, int]
    caption: dict[str, Any]
    picture: str


class Extremes:
    """The easiest and the hardest few images of each class.

    Args:
        each: how many of them.
        mean: of each channel, with which images were normalised; None to stretch each picture
            from its smallest value to its largest.
        std: likewise.

    Raises:
        ArgumentError: for one of mean and std without the other.
    """

    def __init__(
        self, each: int, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> None:
        if (mean is None) != (std is None):
            raise ArgumentError("explain: give both mean= and std=, or neither.")
        self.each, self.mean, self.std = each, mean, std
        self.easiest: dict[int, list[Shown]] = defaultdict(list)
        self.hardest: dict[int, list[Shown]] = defaultdict(list)
        self._number = itertools.count()

    def add(self, label: int, cost: float, doubt: float, caption: Any, image: Tensor) -> None:
        """Take an image (C, H, W); a picture is made only if it is among the extremes."""
        order = (cost, doubt, next(self._number))
        easy, hard = self.easiest[label], self.hardest[label]
        is_easy = len(easy) < self.each or order < easy[-1].order
        is_hard = len(hard) < self.each or order > hard[0].order
        if is_easy or is_hard:
            self._take(label, Shown(order, caption._asdict(), self._jpeg(image)))

    def _take(self, label: int, shown: Shown) -> None:
        easy, hard = self.easiest[label], self.hardest[label]
        bisect.insort(easy, shown, key=lambda s: s.order)
        bisect.insort(hard, shown, key=lambda s: s.order)
        del easy[self.each :], hard[: -self.each]

    def _jpeg(self, image: Tensor) -> str:
        pixels = image.detach().cpu().float()
        if self.mean is None or self.std is None:
            low, high = pixels.min(), pixels.max()
            pixels = (pixels - low) / (high - low).clamp_min(1e-12)
        else:
            mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
            pixels = pixels * std + mean
        if len(pixels) != 3:  # depth, or satellites' bands
            pixels = pixels.mean(0, keepdim=True)
        whole = (255 * pixels.nan_to_num(0)).round().clamp(0, 255).to(torch.uint8)
        picture = needed("PIL.Image").fromarray(whole.permute(1, 2, 0).squeeze(2).numpy())
        picture.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=88)
        return base64.b64encode(file.getvalue()).decode()

    def to_json(self) -> str:
        """Return everything as text, for the other processes."""
        parts = ({str(k): v for k, v in each.items()} for each in (self.easiest, self.hardest))
        return json.dumps(list(parts))

    def of_all(self, texts: Iterable[str]) -> Extremes:
        """Return the joint extremes of several processes, from the `to_json` of each."""
        whole = Extremes(self.each, self.mean, self.std)
        for process, text in enumerate(texts):
            easiest, hardest = json.loads(text)
            for label, shown in (*easiest.items(), *hardest.items()):
                for order, caption, picture in shown:
                    own = (*order[:2], (order[2] << 16) + process)
                    whole._put(int(label), Shown(own, caption, picture))
        return whole

    def _put(self, label: int, shown: Shown) -> None:
        if all(shown.order != s.order for s in (*self.easiest[label], *self.hardest[label])):
            self._take(label, shown)
