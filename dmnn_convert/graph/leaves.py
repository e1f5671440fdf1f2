"""Library modules that a trace leaves whole."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from ..optional import loaded
from .makers import overlooked_functions
from .vouching import vouched_functions

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


def functions_left_whole() -> tuple[Callable[..., Any], ...]:
    """Return the functions that a trace does not look into."""
    timm = sys.modules.get("timm.models")
    found = (
        *(timm.get_notrace_functions() if timm else ()),
        *(*loaded("einops.rearrange"), *vouched_functions(), *overlooked_functions()),
    )
    return tuple(function for function in found if callable(function))
