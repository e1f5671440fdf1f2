"""Running means and variances of a norm's inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed import summed
from ..errors import ArgumentError
from .finite import check_finite


class Moments:
    """Mean and variance of each channel over all added values, in float64."""

    def __init__(self, channels: int) -> None:
        self.sums = torch.zeros(3, channels, dtype=torch.float64)

    @property
    def counts(self) -> Tensor:
        """Number of values of each channel, (C,)."""
        return self.sums[0]

    @property
    def count(self) -> int:
        """Number of values of the first channel, the largest."""
        return int(self.sums[0, 0])

    def add(self, x: Tensor) -> None:
        """Add the values of x (B, C, ...), or of the first channels alone."""
        values = x.double().transpose(0, 1).flatten(1)
        count = torch.full_like(values[:, 0], values.shape[1])
        self.sums = self.sums.to(x.device)
        own = torch.stack([count, values.sum(1), values.square().sum(1)])
        self.sums[:, : len(values)] += own

    def add_up(self) -> None:
        """Add the values of all processes; all must call it.

        Raises:
            ArgumentError: if a value is not finite, because its statistics would be NaN.
        """
        self.sums = summed(self.sums)
        check_finite("the values that a norm is given", self.sums)

    def mean(self) -> Tensor:
        """Return the mean of each channel, (C,); 0 for one without values."""
        if not self.count:
            raise ArgumentError("calibrate: a block did not run on the given images.")
        return self.sums[1] / self.counts.clamp_min(1)

    def variance(self) -> Tensor:
        """Return the biased variance of each channel, (C,)."""
        mean = self.mean()
        return (self.sums[2] / self.counts.clamp_min(1) - mean.square()).clamp_min(0)
