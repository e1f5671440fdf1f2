"""Running means and variances of a norm's inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed import summed
from ..errors import ArgumentError


class Moments:
    """Mean and variance of each channel over all that was added, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sums = torch.zeros(2, channels, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Add the values of x (B, C, ...)."""
        values = x.double().transpose(0, 1).flatten(1)
        self.count += values.shape[1]
        self.sums = self.sums.to(x.device) + torch.stack([values.sum(1), values.square().sum(1)])

    def add_up(self) -> None:
        """Add what all processes have added, each of which must call it."""
        self.sums = summed(self.sums)
        self.count = int(summed(torch.tensor(self.count)))

    def mean(self) -> Tensor:
        """Return the mean of each channel, (C,)."""
        if not self.count:
            raise ArgumentError("calibrate: a block did not run on the given images.")
        return self.sums[0] / self.count

    def variance(self) -> Tensor:
        """Return the variance of each channel, (C,), not corrected for the mean being its own."""
        mean = self.mean()
        return (self.sums[1] / self.count - mean.square()).clamp_min(0)
