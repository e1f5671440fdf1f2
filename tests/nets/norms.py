"""Values drawn for batch norms, as training would leave them: fresh norms hide mistakes."""

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

Draw = Callable[[Tensor, Generator | None], Tensor]


def uniform(low: float, high: float) -> Draw:
    return lambda tensor, generator: tensor.uniform_(low, high, generator=generator)


def normal(std: float = 1.0) -> Draw:
    return lambda tensor, generator: tensor.normal_(0, std, generator=generator)


def draw_norms(
    model: nn.Module, values: Mapping[str, Draw], generator: Generator | None = None
) -> nn.Module:
    """Draw these tensors of every batch norm, in place and in this order."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm | FrozenBatchNorm2d):
                for name, draw in values.items():
                    if getattr(module, name) is not None:
                        draw(getattr(module, name), generator)
    return model
