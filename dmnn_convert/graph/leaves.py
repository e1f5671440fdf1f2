"""Library modules that a trace leaves whole."""

from __future__ import annotations

from torch import nn

# Of PyTorch's own modules, which are leaves, those that hold blocks.
OPENED = (
    *(nn.TransformerEncoder, nn.TransformerEncoderLayer),
    *(nn.TransformerDecoder, nn.TransformerDecoderLayer, nn.Transformer),
)


# Of what timm holds untraceable, the rest is tried, and left whole where that fails.
_TIMM_LEAVES = (
    *("DropPath", "BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNormAct2d", "InplaceAbn"),
    *("Conv2dSame", "StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame"),
    *("AvgPool2dSame", "MaxPool2dSame", "CondConv2d", "BlurPool2d"),
)


# Per-image randomness has to stay in its module: opened, its modes take different paths.
LEAVES = (
    *("torchvision.ops.StochasticDepth", "torchvision.ops.FrozenBatchNorm2d"),
    *(f"timm.layers.{name}" for name in _TIMM_LEAVES),
)
