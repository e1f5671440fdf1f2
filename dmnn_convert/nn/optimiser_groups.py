"""Groups of parameters for an optimiser: the network's and the controllers', decayed or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .controller import GateController, gate_parameters


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    lr: float | None = None,
    gate_lr: float | None = None,
    gate_weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Return groups for any of PyTorch's optimisers, of the parameters that require a gradient.

    Norms and biases have no weight decay, in the network and in the controllers: decay would pull
    the execution rates, which a controller's bias decides, towards one half.

    Args:
        model: a converted model, or anything that contains one; others have no controllers.
        weight_decay: of the network.
        lr: learning rate of the network; None for the optimiser's own.
        gate_lr: of the controllers, which have few parameters and tolerate more; None for `lr`.
        gate_weight_decay: of the controllers.

    Returns:
        The network's groups, then the controllers'; the last one is the controllers', if any.

    Example:
        >>> groups = parameter_groups(model, weight_decay=1e-4, lr=0.05, gate_lr=0.3)
        >>> optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    """
    dynamic = any(isinstance(module, GateController) for module in model.modules())
    gates = [p for p in gate_parameters(model) if p.requires_grad] if dynamic else []
    own = {id(p) for p in gates}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    rate = lr if gate_lr is None else gate_lr
    groups = _parted(others, weight_decay, lr)
    if gate_weight_decay:
        groups += _parted(gates, gate_weight_decay, rate)
    else:
        groups.append(_group(gates, 0.0, rate))
    return [group for group in groups if group["params"]]


def _parted(given: Sequence[nn.Parameter], decay: float, lr: float | None) -> list[dict[str, Any]]:
    """Return weights, which decay, and then norms and biases."""
    weights, plain = [p for p in given if p.dim() > 1], [p for p in given if p.dim() <= 1]
    return [_group(weights, decay, lr), _group(plain, 0.0, lr)]


def _group(params: Sequence[nn.Parameter], decay: float, lr: float | None) -> dict[str, Any]:
    rate = {} if lr is None else {"lr": lr}
    return {"params": [*params], "weight_decay": decay, **rate}
