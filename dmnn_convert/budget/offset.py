"""The budget of gates: one offset on all on-margins, found on held-out images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..distributed import summed
from ..errors import ArgumentError
from ..flops import FlopsTable
from ..foreign import images_of
from ..nn import controllers, force_gates, in_evaluation, record_paths
from ..progress import Progress
from ..refit import device_of
from .level import table_of

_NEAR, _FINE = 1e-3, 1e-4
"""Tolerances: of a ratio to the budget, and between two offsets."""


_FARTHEST = 2.0**14
"""Larger than any margin: an offset of this size switches every gate that any offset can."""


_JUMP = 0.1
"""Largest difference in FLOPs between two neighbouring offsets."""


def set_budget(
    model: nn.Module, loader: Iterable[Any], flops_ratio: float, *, progress: bool = False
) -> float:
    """Give a gated network another budget, without training, and return the offset.

    One number is added to the on-margin of every gate. It brings the whole network's mean FLOPs on
    held-out images as near to the budget as possible without exceeding it. It is part of
    `state_dict`, and `save` and `load` keep it; another call replaces it. Models prepared before
    keep the budget that they were prepared with.

    In a distributed run every process must call it with its own share of the images (`shard`), and
    all of them find the same offset.

    Args:
        model: a converted model with trained gates.
        loader: yields images (B, C, H, W), or tuples or dicts with them, held out from training.
            It is iterated over about ten times.
        flops_ratio: mean FLOPs of the whole network, controllers included, over the source's.
        progress: whether to show a bar.

    Returns:
        The offset, in nats.

    Raises:
        ArgumentError: for a budget below the parts that always run, or one that the gates jump
            over; for a model that is not converted, or whose controllers do not decide; for no
            images. The model is then unchanged.

    Example:
        >>> net, _ = dynamize(Net(), N=4, gate=GateConfig(spread=3.0), input_size=(3, 16, 16))
        >>> logits = net.train()(images)  # ... and the rest of the training
        >>> offset = set_budget(net.eval(), held_out, 0.7)
    """
    found, table = controllers(model), table_of(model, "set_budget")
    number = isinstance(flops_ratio, int | float) and not isinstance(flops_ratio, bool)
    if not number or not 0 < flops_ratio <= 1:
        raise ArgumentError(
            f"set_budget(flops_ratio={flops_ratio!r}): give a number above 0 and at most 1, the "
            "whole network's mean FLOPs over the source's."
        )
    batches = list(loader) if isinstance(loader, Iterator) else loader
    before = [controller.offset for controller in found]
    bar = Progress("set budget", shown=progress, unit="passes")
    try:
        with bar:
            return _Search(model, table, batches, bar).offset_for(flops_ratio)
    except BaseException:
        for controller, offset in zip(found, before, strict=True):
            controller.offset = offset
        raise


class _Search:
    """The mean FLOPs of a model at one offset after another."""

    def __init__(
        self, model: nn.Module, table: FlopsTable, batches: Iterable[Any], bar: Any
    ) -> None:
        self.model, self.table, self.batches, self.bar = model, table, batches, bar
        self.device = device_of(model)

    def offset_for(self, target: float) -> float:
        """Find the offset, and leave it in the model."""
        with force_gates(self.model, False):
            floor = self.ratio()
        if floor > target:
            raise ArgumentError(
                f"set_budget(flops_ratio={target:g}): with every gate off, the network takes "
                f"{floor:.3f} of the source's FLOPs already. Give that or more."
            )
        low, high = -1.0, 1.0
        while (least := self.at(low)) > target:
            low = self._farther(low)
        while (most := self.at(high)) <= target:
            if most >= self.table.total / self.table.dense_total - 1e-9:
                return high  # all on, and within the budget
            low, least, high = high, most, self._farther(high)
        while high - low > _FINE * max(1.0, abs(low)) and target - least > _NEAR:
            middle = (low + high) / 2
            reached = self.at(middle)
            if reached <= target:
                low, least = middle, reached
            else:
                high, most = middle, reached
        if target - least > _NEAR and most - least > _JUMP:
            raise ArgumentError(
                f"set_budget(flops_ratio={target:g}): the gates jump from {least:.3f} to "
                f"{most:.3f} of the source's FLOPs, all images alike. Train them first, or give "
                "more images, or one of these ratios."
            )
        self.at(low)
        return low

    def at(self, offset: float) -> float:
        """Return the mean ratio at an offset."""
        value = torch.tensor(offset, device=self.device)
        for controller in controllers(self.model):
            controller.offset = value.clone()
        return self.ratio()

    def ratio(self) -> float:
        """Return the mean FLOPs over the images of all processes, over the source's."""
        sums = torch.zeros(2, dtype=torch.float64)
        with in_evaluation(self.model, "skip"):
            for batch in self.batches:
                images = images_of(batch, "set_budget")
                with record_paths(self.model) as paths:
                    self.model(images.to(self.device, copy=True))
                macs = self.table.network_flops(paths.gates)
                sums += torch.tensor([float(macs.sum()), len(macs)], dtype=torch.float64)
        self.bar.update()
        macs, count = summed(sums).tolist()
        if not count:
            raise ArgumentError("set_budget: the loader gave no images; give held-out images.")
        return float(macs / count / self.table.dense_total)

    def _farther(self, offset: float) -> float:
        if abs(offset) >= _FARTHEST:
            raise ArgumentError(
                "set_budget: gates do not follow their controllers, whatever is added to their "
                "margins. Give the converted model itself, not a prepared one, outside of "
                "force_gates."
            )
        return 2 * offset
