"""The operations that conversion knows, with one rule for each.

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

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..graph import TracedModel, argument, is_batch_size, keeps_images_apart
from .nodes import (
    DIVISIONS,
    MULTIPLICATIONS,
    batch_norm_arguments,
    class_name,
    is_plain_conv,
    is_row_wise_conv,
    op_name,
)


class Role(enum.Enum):
    """The way in which an operation treats channels."""

    DENSE = "mixes channels"
    GROUPED = "keeps groups of channels apart"
    CHANNELWISE = "keeps channels apart"
    NORM = "normalises each channel"
    OTHER = "unknown"


@dataclass(frozen=True)
class Rule:
    """A rule: what is known about one operation.

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


"""timm's weight-standardised convolutions: each filter is normalised by itself."""


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


def rule(trace: TracedModel, node: fx.Node) -> Rule:
    """Return what is known of the operation that `node` stands for."""
    if node.op == "call_module":
        if node.target in trace.passing:
            return _PER_IMAGE
        return _module_rule(trace.module(node))
    if node.op in ("call_function", "call_method"):
        return _operation_rule(node)
    return _OTHER


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
