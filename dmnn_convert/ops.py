"""What an operation does to channels: one rule for each operation.

`rule(trace, node)` answers three questions that finding and splitting ask: does the operation mix
channels (DENSE), keep groups of them apart (GROUPED), keep every channel to itself (CHANNELWISE),
normalise each by a learned affine map (NORM), or something else (OTHER)? Is it linear, so that it
may be shared out over a sum? Does it map zeros to zeros, so that it may run on a gated sum?
To support a new operation, add one entry to a table here.
"""

from __future__ import annotations

import enum
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

from .trace import TRAINING, Trace


class Role(enum.Enum):
    """How an operation treats channels."""

    DENSE = "mixes channels"
    GROUPED = "keeps groups of channels apart"
    CHANNELWISE = "keeps channels apart"
    NORM = "normalises each channel"
    OTHER = "unknown"


@dataclass(frozen=True)
class Rule:
    """What is known of one operation.

    Attributes:
        role: how it treats channels.
        linear: it may be shared out over a sum.
        zero: it maps zeros to zeros, so it may run on a gated sum.
        pointwise: it treats every value alike, wherever it stands.
        refusal: why no block may hold it at all.
        per_image: it treats every image by itself, so that images may be left out.
    """

    role: Role
    linear: bool = False
    zero: bool = False
    pointwise: bool = False
    refusal: str = ""
    per_image: bool = True


_DENSE = Rule(Role.DENSE)
_GROUPED = Rule(Role.GROUPED)
_NORM = Rule(Role.NORM, linear=True)
_NORM_ACT = Rule(Role.NORM)
_OTHER = Rule(Role.OTHER, per_image=False)
_PER_IMAGE = Rule(Role.OTHER)
_BY_BATCH = Rule(
    Role.OTHER, refusal="normalises by the batch's own statistics, which skipping images changes"
)
_LINEAR = Rule(Role.CHANNELWISE, linear=True, zero=True)
_ZERO = Rule(Role.CHANNELWISE, zero=True)
_ACTIVATION = Rule(Role.CHANNELWISE, zero=True, pointwise=True)
_POINTWISE = Rule(Role.CHANNELWISE, pointwise=True)

_MODULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys(
        (
            nn.Identity,
            nn.Dropout,
            nn.Dropout1d,
            nn.Dropout2d,
            nn.Dropout3d,
            StochasticDepth,
            nn.AvgPool1d,
            nn.AvgPool2d,
            nn.AvgPool3d,
            nn.ZeroPad1d,
            nn.ZeroPad2d,
            nn.ZeroPad3d,
            nn.ReflectionPad1d,
            nn.ReflectionPad2d,
            nn.ReplicationPad2d,
            nn.Upsample,
        ),
        _LINEAR,
    ),
    **dict.fromkeys(
        (
            nn.ReLU,
            nn.ReLU6,
            nn.LeakyReLU,
            nn.PReLU,
            nn.SiLU,
            nn.GELU,
            nn.ELU,
            nn.CELU,
            nn.SELU,
            nn.Mish,
            nn.Tanh,
            nn.Hardswish,
            nn.Hardtanh,
        ),
        _ACTIVATION,
    ),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _ZERO),
    **dict.fromkeys((nn.Sigmoid, nn.Hardsigmoid, nn.Softplus), _POINTWISE),
    **dict.fromkeys(
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, FrozenBatchNorm2d),
        _NORM,
    ),
    **dict.fromkeys(
        (
            nn.GroupNorm,
            nn.LayerNorm,
            nn.Linear,
            nn.AdaptiveAvgPool1d,
            nn.AdaptiveAvgPool2d,
            nn.AdaptiveAvgPool3d,
            nn.AdaptiveMaxPool2d,
            nn.PixelShuffle,
            nn.PixelUnshuffle,
            nn.ChannelShuffle,
            nn.ConvTranspose2d,
        ),
        _PER_IMAGE,
    ),
}

_FUNCTIONS: dict[Callable[..., Any], Rule] = {
    **dict.fromkeys((F.dropout, F.dropout2d, F.dropout3d, F.avg_pool1d, F.avg_pool2d), _LINEAR),
    **dict.fromkeys(
        (
            F.relu,
            torch.relu,
            torch.relu_,
            F.relu_,
            F.relu6,
            F.leaky_relu,
            F.silu,
            F.gelu,
            F.elu,
            F.mish,
            F.tanh,
            torch.tanh,
            F.hardswish,
        ),
        _ACTIVATION,
    ),
    **dict.fromkeys((F.max_pool1d, F.max_pool2d), _ZERO),
    **dict.fromkeys(
        (
            operator.add,
            operator.iadd,
            operator.sub,
            operator.truediv,
            torch.add,
            torch.sub,
            F.adaptive_avg_pool2d,
            F.interpolate,
            F.linear,
            F.conv2d,
        ),
        _PER_IMAGE,
    ),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, F.hardsigmoid, F.softplus, F.hardtanh), _POINTWISE),
}

_METHODS: dict[str, Rule] = {
    **dict.fromkeys(("contiguous", "clone"), _LINEAR),
    **dict.fromkeys(("relu", "relu_", "tanh", "tanh_"), _ACTIVATION),
    **dict.fromkeys(("sigmoid", "sigmoid_"), _POINTWISE),
}

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_PRODUCTS = (operator.mul, operator.imul, torch.mul)


def rule(trace: Trace, node: fx.Node) -> Rule:
    """Return what is known of the operation that `node` stands for."""
    if node.op == "call_module":
        return _module_rule(trace.module(node))
    if node.op == "call_method":
        return _METHODS.get(str(node.target), _OTHER)
    if node.op == "call_function":
        return _function_rule(node)
    return _OTHER


def _module_rule(module: nn.Module | None) -> Rule:
    if isinstance(module, _ConvNd):
        # A subclass may do anything to its weights first.
        if type(module).__module__ != _CONV_MODULE:
            return _OTHER
        if isinstance(module, _ConvTransposeNd):
            return _PER_IMAGE
        return _DENSE if module.groups == 1 else _GROUPED
    timm = sys.modules.get("timm.layers")
    if timm and isinstance(module, timm.DropPath):
        return _LINEAR
    if timm and module is not None and type(module) is timm.BatchNormAct2d:
        return _NORM if isinstance(module.act, nn.Identity) else _NORM_ACT
    known = _MODULES.get(type(module), _OTHER) if module is not None else _OTHER
    if known is _NORM and getattr(module, "running_mean", None) is None:
        return _BY_BATCH
    if isinstance(module, nn.Hardtanh) and not module.min_val <= 0 <= module.max_val:
        return _POINTWISE
    return known


_CONV_MODULE = nn.Conv2d.__module__


def _function_rule(node: fx.Node) -> Rule:
    if node.target is F.batch_norm:
        return _NORM if batch_norm_arguments(node) else _OTHER
    if node.target is torch.cat:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        return _PER_IMAGE if isinstance(dim, int) and dim > 0 else _OTHER
    if node.target is F.pad:
        return _pad_rule(node)
    if node.target in _PRODUCTS:
        return _LINEAR if len(tensor_inputs(node)) == 1 else Rule(Role.CHANNELWISE)
    return _FUNCTIONS.get(node.target, _OTHER)  # type: ignore[arg-type]


def _pad_rule(node: fx.Node) -> Rule:
    # F.pad counts from the last dimension: two pairs leave an image's channels alone.
    padding = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
    plain = set(node.kwargs) <= {"pad", "mode", "value"} and not node.kwargs.get("value")
    if plain and len(node.args) <= 2 and isinstance(padding, tuple | list) and len(padding) <= 4:
        return _LINEAR
    return _OTHER


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the node's inputs that are computed, not read from the module."""
    return [n for n in node.all_input_nodes if n.op != "get_attr"]


def is_addition(node: fx.Node) -> bool:
    """Return whether the node adds two things: ``+``, ``+=``, torch.add, ``.add``, ``.add_``."""
    if node.op == "call_function":
        return node.target in _ADDITIONS
    return node.op == "call_method" and node.target in ("add", "add_")


def is_subtraction(node: fx.Node) -> bool:
    """Return whether the node subtracts one thing from another."""
    if node.op == "call_function":
        return node.target in (operator.sub, operator.isub, torch.sub)
    return node.op == "call_method" and node.target in ("sub", "sub_")


def writes_in_place(trace: Trace, node: fx.Node) -> bool:
    """Return whether the operation overwrites its input."""
    if node.op == "call_module":
        return bool(getattr(trace.module(node), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    name = getattr(node.target, "__name__", "")
    return bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.startswith("_"))


_BATCH_NORM_ARGUMENTS = (
    "input",
    "running_mean",
    "running_var",
    "weight",
    "bias",
    "training",
    "momentum",
    "eps",
)


def batch_norm_arguments(node: fx.Node) -> dict[str, Any] | None:
    """Return a functional batch norm's arguments by name.

    None unless it is what `nn.BatchNorm2d` does: all four tensors read from the module, and batch
    statistics in training only.
    """
    arguments: dict[str, Any] = {"training": False, "momentum": 0.1, "eps": 1e-5}
    arguments |= dict(zip(_BATCH_NORM_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)
    tensors = [arguments.get(name) for name in _BATCH_NORM_ARGUMENTS[1:5]]
    read = all(isinstance(t, fx.Node) and t.op == "get_attr" for t in tensors)
    return arguments if read and arguments["training"] is TRAINING else None
