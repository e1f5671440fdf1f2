"""Functions that are layers: `F.linear` and `F.conv2d` of the model's own parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .attributes import plain

_CONVS: dict[Any, type[nn.Module]] = {
    F.conv1d: nn.Conv1d,
    F.conv2d: nn.Conv2d,
    F.conv3d: nn.Conv3d,
}

_SETTINGS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def is_layer_function(node: fx.Node) -> bool:
    """Return whether a node calls a function that is a layer, if its parameters are the model's."""
    return node.op == "call_function" and (node.target is F.linear or node.target in _CONVS)


def layer_read(node: fx.Node, attribute: Callable[[fx.Node], Any]) -> nn.Module | None:
    """Return the layer that a function is, with the model's own parameters; None if it is none.

    Args:
        node: what may call one.
        attribute: gives what a ``get_attr`` node reads.
    """
    if not is_layer_function(node):
        return None
    names = ("input", "weight", "bias", *_SETTINGS)
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    weight, bias = (_parameter(given.get(name), attribute) for name in ("weight", "bias"))
    if weight is None or (bias is None and given.get("bias") is not None):
        return None
    settings = {name: plain(given.get(name, value)) for name, value in _SETTINGS.items()}
    if not all(map(_is_written_down, settings.values())):
        return None
    layer = _built(node.target, weight, bias is not None, settings)
    layer._parameters["weight"], layer._parameters["bias"] = weight, bias
    return layer


def weight_read(node: fx.Node) -> str:
    """Return the name in the model of the weight that such a function, or a norm, reads."""
    weight: Any = node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)
    return str(weight.target) if isinstance(weight, fx.Node) and weight.op == "get_attr" else ""


def _parameter(node: Any, attribute: Callable[[fx.Node], Any]) -> nn.Parameter | None:
    value = attribute(node) if isinstance(node, fx.Node) and node.op == "get_attr" else None
    return value if isinstance(value, nn.Parameter) else None


def _is_written_down(setting: Any) -> bool:
    several = setting if isinstance(setting, tuple | list) else [setting]
    return all(type(value) in (int, str) for value in several)


def _built(function: Any, weight: nn.Parameter, bias: bool, settings: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):  # without values of its own
        if function is F.linear:
            return nn.Linear(weight.shape[1], weight.shape[0], bias)
        sizes = {n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()}
        inputs, kernel = weight.shape[1] * settings["groups"], tuple(weight.shape[2:])
        return _CONVS[function](inputs, weight.shape[0], kernel, bias=bias, **sizes)
