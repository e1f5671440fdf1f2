"""Activations that a convolution may end with: oneDNN's names for them, and PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


class Activation(NamedTuple):
    """An elementwise function.

    Attributes:
        name: what oneDNN calls it.
        apply: the same in PyTorch.
        scalars: its parameters.
        algorithm: its variant.
        idempotent: whether applying it twice is applying it once.
    """

    name: str
    apply: Callable[[Tensor], Tensor]
    scalars: tuple[float, ...] = ()
    algorithm: str = ""
    idempotent: bool = False

    @property
    def kind(self) -> tuple[Any, ...]:
        """Its identity among activations."""
        return self.name, self.scalars, self.algorithm


def _clamp(low: float, high: float) -> Activation:
    return Activation("hardtanh", lambda x: F.hardtanh(x, low, high), (low, high), "", True)


_RELU = Activation("relu", F.relu, idempotent=True)


_MODULES: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda m: _RELU,
    nn.ReLU6: lambda m: _clamp(0.0, 6.0),
    nn.Hardtanh: lambda m: _clamp(m.min_val, m.max_val),
    nn.SiLU: lambda m: Activation("swish", F.silu),
    nn.Hardswish: lambda m: Activation("hardswish", F.hardswish),
    nn.Sigmoid: lambda m: Activation("sigmoid", torch.sigmoid),
    nn.Tanh: lambda m: Activation("tanh", torch.tanh),
    nn.GELU: lambda m: Activation(
        "gelu", lambda x: F.gelu(x, approximate=m.approximate), (), m.approximate
    ),
    nn.LeakyReLU: lambda m: Activation(
        "leaky_relu", lambda x: F.leaky_relu(x, m.negative_slope), (m.negative_slope,)
    ),
}


_FUNCTIONS: dict[Any, Activation] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), _RELU),
    F.relu6: _clamp(0.0, 6.0),
    F.silu: Activation("swish", F.silu),
    F.hardswish: Activation("hardswish", F.hardswish),
    **dict.fromkeys((torch.sigmoid, "sigmoid"), Activation("sigmoid", torch.sigmoid)),
}


def activation_of(module: nn.Module) -> Activation | None:
    """Return a module's activation; None if it is not a known one."""
    make = _MODULES.get(type(module))
    return None if make is None else make(module)


def activation_at(node: fx.Node, module: nn.Module | None) -> Activation | None:
    """Return the activation that a node of a graph applies; None if it is not a known one.

    Args:
        node: of a traced graph.
        module: the module that it calls, if any.
    """
    if module is not None:
        return activation_of(module)
    plain = len(node.args) == 1 and set(node.kwargs) <= {"inplace"}
    return _FUNCTIONS.get(node.target) if plain and node.op != "get_attr" else None
