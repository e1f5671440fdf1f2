"""What an operation is: one rule for each operation.

`rule(trace, node)` answers what finding and splitting ask: does the operation mix channels
(DENSE), keep groups of them apart (GROUPED), keep every channel to itself (CHANNELWISE), normalise
each by a learned affine map (NORM), or something else (OTHER)? Is it linear, so that it may be
shared out over a sum? Does it map zeros to zeros? May images be left out of its batch? How an
operation moves channels about is in `carry.py`. To support a new operation, add one entry to a
table here, and one there if it moves channels.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .dims import argument, is_batch_size, keeps_images_apart
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
        zero: it maps zeros to zeros.
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

_MODULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "StochasticDepth"),
            *("AvgPool1d", "AvgPool2d", "AvgPool3d", "AvgPool2dSame", "BlurPool2d", "DropPath"),
            *("AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "Flatten"),
            *("ZeroPad1d", "ZeroPad2d", "ZeroPad3d", "ReflectionPad1d", "ReflectionPad2d"),
            *("ReplicationPad2d", "Upsample", "FastAdaptiveAvgPool2d", "FastAdaptiveAvgPool"),
        ),
        _LINEAR,
    ),
    **dict.fromkeys(
        (
            *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "SiLU", "GELU", "ELU", "CELU", "SELU", "Mish"),
            *("Tanh", "Hardswish", "Hardtanh", "QuickGELU", "GELUTanh", "Swish", "HardSwish"),
            *("HardMish", "HardswishMe", "SwishMe", "MishMe", "HardMishMe", "Softsign"),
        ),
        _ACTIVATION,
    ),
    **dict.fromkeys(("MaxPool1d", "MaxPool2d", "MaxPool3d", "MaxPool2dSame"), _ZERO),
    **dict.fromkeys(
        ("Sigmoid", "Hardsigmoid", "Softplus", "HardSigmoid", "HardSigmoidMe"), _POINTWISE
    ),
    **dict.fromkeys(
        (
            *("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "FrozenBatchNorm2d"),
            "AnyBatchNorm",
        ),
        _NORM,
    ),
    **dict.fromkeys(
        (
            *("GroupNorm", "LayerNorm", "RMSNorm", "GroupNormAct", "GroupNorm1", "GroupNorm1Act"),
            *("LayerNorm2d", "LayerNormAct2d", "LayerNormAct", "SimpleNorm", "SimpleNorm2d"),
            *("RmsNorm", "RmsNorm2d", "LayerNormExp2d", "LayerNormFp32", "LayerNorm2dFp32"),
            *("AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "AdaptiveMaxPool3d", "Softmax"),
            *("PixelShuffle", "PixelUnshuffle", "ChannelShuffle", "InstanceNorm2d"),
            *("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "LocalResponseNorm"),
            "RadixSoftmax",
        ),
        _PER_IMAGE,
    ),
}
"""By class name; the class must be torch's, torchvision's, timm's or this package's own."""

_OWN = ("torch", "torchvision", "timm", __package__)

ROW_WISE_CONVS = ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")
"""timm's weight-standardised convolutions: each filter is normalised by itself."""

_SAME_CONVS = ("Conv2dSame",)

ADDITIONS = ("add", "iadd", "add_")
MULTIPLICATIONS = ("mul", "imul", "mul_", "multiply")
DIVISIONS = ("div", "truediv", "itruediv", "div_")

_NAMED: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("dropout", "dropout2d", "dropout3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
            *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "contiguous", "clone", "float", "half"),
            *("permute", "transpose", "swapaxes", "movedim", "flatten", "view", "reshape", "neg"),
            *("unsqueeze", "squeeze", "mean", "sum", "interpolate", "chunk", "split", "unbind"),
            *("getitem", "cat", "concat", "stack", "type_as", "to", "roll", "unflatten", "flip"),
            *("drop_path", "stochastic_depth", "cumsum", "reshape_as", "view_as", "unfold", "fold"),
        ),
        _LINEAR,
    ),
    **dict.fromkeys(
        (
            *("relu", "relu_", "relu6", "leaky_relu", "silu", "gelu", "elu", "celu", "selu"),
            *(
                "mish",
                "tanh",
                "tanh_",
                "hardswish",
                "hard_swish",
                "abs",
                "sqrt",
                "square",
                "softsign",
            ),
            *("swish", "hard_mish", "quick_gelu", "gelu_tanh", "silu_"),
        ),
        _ACTIVATION,
    ),
    **dict.fromkeys(
        (
            *("sigmoid", "sigmoid_", "hardsigmoid", "hard_sigmoid", "softplus", "hardtanh", "exp"),
            *("clamp", "clip", "log", "rsqrt", "reciprocal", "erf", "cos", "sin", "log1p"),
        ),
        _POINTWISE,
    ),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d", "amax", "amin", "norm"), _ZERO),
    **dict.fromkeys((*MULTIPLICATIONS, *DIVISIONS), Rule(Role.CHANNELWISE)),
    **dict.fromkeys(
        (
            *("add", "iadd", "add_", "sub", "isub", "sub_", "maximum", "minimum", "where", "pow"),
            *("linear", "conv1d", "conv2d", "conv3d", "layer_norm", "rms_norm", "group_norm"),
            *("softmax", "var", "std", "normalize", "addcmul", "expand_as", "expand", "matmul"),
            *("adaptive_max_pool2d", "pixel_shuffle", "pixel_unshuffle", "instance_norm"),
            *("zeros_like", "ones_like", "max", "min", "repeat_interleave", "bmm", "logsumexp"),
            *("fast_layer_norm", "fast_rms_norm", "fast_group_norm", "rms_norm2d", "simple_norm"),
            *("fast_rms_norm2d", "fast_simple_norm", "getattr", "size", "dim", "floordiv", "mod"),
        ),
        _PER_IMAGE,
    ),
}
"""By the name of the function or method."""

POINTWISE = tuple(name for name, known in _NAMED.items() if known.pointwise)
POINTWISE_CLASSES = tuple(name for name, known in _MODULES.items() if known.pointwise)
"""Operations that treat every value alike, wherever it stands."""

_SIZED = ("view", "reshape", "expand", "flatten", "unflatten", "interpolate")
"""What may read the size of a batch without becoming a function of it."""

ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward")


def rule(trace: Trace, node: fx.Node) -> Rule:
    """Return what is known of the operation that `node` stands for."""
    if node.op == "call_module":
        if node.target in trace.passing:
            return _PER_IMAGE
        return _module_rule(trace.module(node))
    if node.op in ("call_function", "call_method"):
        return _operation_rule(node)
    return _OTHER


def op_name(node: fx.Node) -> str:
    """Return the name of a PyTorch function or method that a node calls; "" for another's."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    home = (getattr(node.target, "__module__", None) or "torch").partition(".")[0]
    known = node.target is getattr or home in ("torch", "_operator", "operator", "timm", "math")
    return getattr(node.target, "__name__", "") if known else ""


def class_name(module: nn.Module | None) -> str:
    """Return the name of a library's own module class; "" for a user's, whatever its name."""
    home = type(module).__module__.partition(".")[0]
    return type(module).__name__ if home in _OWN else ""


def is_plain_conv(module: nn.Module | None) -> bool:
    """Return whether a module is a convolution whose weight may be cut by rows and columns."""
    # A subclass may do anything to its weights first.
    return isinstance(module, _ConvNd) and (
        type(module).__module__ == nn.Conv2d.__module__ or class_name(module) in _SAME_CONVS
    )


def is_row_wise_conv(module: nn.Module | None) -> bool:
    """Return whether a module is a convolution that standardises each of its filters."""
    return class_name(module) in ROW_WISE_CONVS


def _module_rule(module: nn.Module | None) -> Rule:
    if isinstance(module, _ConvTransposeNd):
        return _PER_IMAGE
    if isinstance(module, _ConvNd):
        if not (is_plain_conv(module) or is_row_wise_conv(module)):
            return _OTHER
        return _DENSE if module.groups == 1 else _GROUPED
    name = class_name(module)
    if module is None or not name:
        return _OTHER
    if name == "Linear":
        return _DENSE
    if name in ("BatchNormAct2d", "FrozenBatchNormAct2d", "SyncBatchNormAct"):
        plain = isinstance(getattr(module, "act", None), nn.Identity)
        return _NORM if plain else _NORM_ACT
    known = _MODULES.get(name, _OTHER)
    if known is _NORM and getattr(module, "running_mean", None) is None:
        return _BY_BATCH
    if isinstance(module, nn.Hardtanh) and not module.min_val <= 0 <= module.max_val:
        return _POINTWISE
    if isinstance(module, nn.Softmax) and (module.dim is None or not -3 < module.dim != 0):
        return _OTHER
    if isinstance(module, nn.Flatten) and module.start_dim < 1:
        return _OTHER
    return known


def _operation_rule(node: fx.Node) -> Rule:
    name = op_name(node)
    if node.target is F.batch_norm:
        return _NORM if batch_norm_arguments(node) else _OTHER
    if not keeps_images_apart(node, name):
        return _OTHER
    if name not in _SIZED and any(map(is_batch_size, node.all_input_nodes)):
        return _OTHER
    if name == "pad":
        zeros = not node.kwargs.get("value") and len(node.args) < 4
        return _LINEAR if zeros else _PER_IMAGE
    if name in MULTIPLICATIONS or name in DIVISIONS:
        operands = (*node.args, *node.kwargs.values())
        # Not tensor_inputs, which counts y · y once.
        alone = sum(isinstance(a, fx.Node) and a.op != "get_attr" for a in operands) == 1
        alone = alone and not node.kwargs.get("rounding_mode")
        return _LINEAR if alone and (name in MULTIPLICATIONS or _is_divided(node)) else _NAMED[name]
    return _NAMED.get(name, _OTHER)


def _is_divided(node: fx.Node) -> bool:
    # 1 / x is not linear in x.
    first = argument(node, 0, "input", "self")
    return isinstance(first, fx.Node) and first.op != "get_attr"


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the node's inputs that are computed, not read from the module."""
    return [n for n in node.all_input_nodes if n.op != "get_attr"]


def is_addition(node: fx.Node) -> bool:
    """Return whether the node adds two things: ``+``, ``+=``, torch.add, ``.add``, ``.add_``."""
    return op_name(node) in ADDITIONS


def is_subtraction(node: fx.Node) -> bool:
    """Return whether the node subtracts one thing from another."""
    return op_name(node) in ("sub", "isub", "sub_")


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
