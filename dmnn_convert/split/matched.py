"""The matched-width split: the channels that narrower bottlenecks keep, and lose."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from ..channels import layer_of
from ..find import Branch
from ..graph import TracedModel
from .layers import Channels
from .moments import BottleneckStatistics
from .program import local_name
from .select import energy_choice, strongest_first


class Narrower:
    """N narrower bottlenecks of the channels between which the most energy flows.

    Args:
        traced: the model that holds the branch.
        branch: a dense bottleneck.
        N: number of sub-blocks.
        widths: (Ĉ1, Ĉ2) of each.
        ordered: whether the first one gets the most important channels.

    Attributes:
        shared: nodes before the first layer, which run once for all.
        layers: nodes of each bottleneck.
    """

    def __init__(
        self,
        traced: TracedModel,
        branch: Branch,
        N: int,
        widths: tuple[int, int],
        *,
        ordered: bool,
    ) -> None:
        start = next(i for i, n in enumerate(branch.trunk) if layer_of(traced, n))
        self.shared, self.first = branch.trunk[:start], branch.trunk[start:]
        self.layers = (*self.first, *branch.body)
        self.branch = branch
        self.statistics = BottleneckStatistics(traced, branch, self.first)
        coupling = self.statistics.coupling()
        choice = energy_choice(coupling, widths, N)
        self.choice = strongest_first(coupling, choice) if ordered else choice
        self.copies = self.choice.copies(self.statistics.c2)

    def channels(self, n: int) -> Channels:
        """Return which channels the n-th bottleneck keeps of each value."""
        first = dict.fromkeys(self.first, self.choice.first[n])
        return first | dict.fromkeys(self.branch.body, self.choice.second[n])

    def compensate(self, sub_block: nn.Module, n: int) -> None:
        """Halve the weight of channels held twice; keep the mean of inputs left out."""
        kept = self.choice.second[n]
        weight = self._tensor(sub_block, self.branch.consumer, "weight")
        scale = (1 / self.copies[kept].to(weight)).view(1, -1, *(1,) * (weight.dim() - 2))
        with torch.no_grad():
            weight.mul_(scale)
        norm = self.statistics.norm_after_second()
        if norm is not None:
            mean = self._tensor(sub_block, norm, "running_mean")
            mean.sub_(self.statistics.missing_mean(self.choice.first[n])[kept].to(mean))

    def _tensor(self, sub_block: nn.Module, node: fx.Node, name: str) -> Tensor:
        module = sub_block.get_submodule(local_name(node, self.branch.enclosing))
        tensor: Tensor = getattr(module, name)
        return tensor
