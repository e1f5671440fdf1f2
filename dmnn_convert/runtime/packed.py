"""Packed convolutions: weights laid out once, the operations that follow fused."""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError
from .activation import Activation
from .careful import CAREFUL
from .layer import Layer

_SCHEMAS = (
    "(Tensor X, Tensor W, Tensor? B, int[] padding, int[] stride, int[] dilation, int groups, "
    "str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y",
    "(Tensor X, Tensor other, Tensor W, Tensor? B, int[] padding, int[] stride, int[] dilation, "
    "int groups, str binary_attr, Scalar? alpha, str? unary_attr, Scalar?[] unary_scalars, "
    "str? unary_algorithm) -> Tensor Y",
)


def _onednn() -> tuple[Any, Any, Any] | None:
    """Return the operators that torch.compile's frozen graphs call, if their signatures match.

    They are private to PyTorch and may change; everything here works without them.
    """
    namespace = torch.ops.mkldnn
    try:
        pointwise = namespace._convolution_pointwise
        operators = pointwise.default, pointwise.binary
        reorder = namespace._reorder_convolution_weight.default
    except (AttributeError, RuntimeError):
        return None
    known = all(
        str(op._schema).endswith(schema) for op, schema in zip(operators, _SCHEMAS, strict=True)
    )
    return (*operators, reorder) if known and torch.backends.mkldnn.is_available() else None


ONEDNN = _onednn()


def runs_packed(layer: Layer) -> bool:
    """Return whether oneDNN's own operators can run a layer."""
    weight = layer.weight
    return ONEDNN is not None and weight.device.type == "cpu" and weight.dtype == torch.float32


_SUM: tuple[Any, ...] = ("add", None, None, [], None)


_SUM_RELU: tuple[Any, ...] = ("add", None, "relu", [], None)


def _how(activation: Activation | None) -> tuple[Any, ...]:
    if activation is None:
        return "none", [], ""
    return activation.name, list(activation.scalars), activation.algorithm


def _cudnn_fuses(
    x: Tensor, weight: Tensor, other: Tensor | None, activation: Activation | None
) -> bool:
    """Return whether cuDNN runs a convolution, the sum and the ReLU after it as one kernel."""
    if not x.is_cuda or torch.version.hip or activation is None or activation.name != "relu":
        return False
    alike = x.dtype == weight.dtype and (other is None or other.dtype == x.dtype)
    depthwise = weight.shape[1] == 1  # PyTorch has faster kernels for these
    return alike and not depthwise and torch.backends.cudnn.enabled and not _is_deterministic()


def _is_deterministic() -> bool:
    """Return whether deterministic results are required, which the fused kernels ignore."""
    return torch.backends.cudnn.deterministic or torch.are_deterministic_algorithms_enabled()


_PACKING = threading.Lock()


class PackedConv(nn.Module):
    """A convolution for inference, with its activation and a sum before it.

    Attributes:
        in_channels: channels of its input.
        out_channels: channels of its output.
        weight: the original, (O, I / groups, kh, kw); None once it has been laid out.
        layouts: the weight as oneDNN wants it, by whether there are several images and by the
            number of threads. With the layout of another case a call takes up to twice as long.
    """

    def __init__(self, layer: Layer, *, biased: bool = True) -> None:
        super().__init__()
        self.in_channels = layer.weight.shape[1] * layer.groups
        self.out_channels = len(layer.weight)
        self.activation, self.groups, self.reads = layer.activation, layer.groups, layer.reads
        self._how = _how(layer.activation)
        self.window = (list(layer.padding), list(layer.stride), list(layer.dilation))
        self.kernel = tuple(layer.weight.shape[2:])
        weight = layer.weight.contiguous(memory_format=torch.channels_last)
        self.weight: Tensor | None = weight
        self.bias = layer.bias.contiguous() if biased else None
        self.packs = runs_packed(layer)
        self.layouts: dict[tuple[bool, int], Tensor] = {}

    def pack(self, size: torch.Size) -> Tensor:
        """Lay the weight out for inputs of a size (B, C, H, W), and return it."""
        case = size[0] > 1, torch.get_num_threads()
        with _PACKING:
            if case not in self.layouts and ONEDNN is not None:
                plain = self._plain_weight().contiguous()
                geometry = (*self.window, self.groups, list(size))
                self.layouts[case] = ONEDNN[2](plain, *geometry)
                self.weight = None
            return self.layouts[case]

    def _plain_weight(self) -> Tensor:
        if self.weight is not None:
            return self.weight
        return next(iter(self.layouts.values())).to_dense()

    def forward(
        self, x: Tensor, other: Tensor | None = None, activation: Activation | None = None
    ) -> Tensor:
        """Return ``activation(conv(x) + other)``, (B, O, H, W).

        Args:
            x: (B, C, H, W), channels last.
            other: the summand; with it, `activation` replaces the layer's own.
            activation: applied to the sum.
        """
        if self.reads is not None and self.reads[1] < x.shape[1]:
            x = x.narrow(1, *self.reads)
        if not self.packs or ONEDNN is None or CAREFUL.on:
            return self._plain(x, other, activation)
        weight = self.layouts.get((len(x) > 1, torch.get_num_threads()))
        if weight is None:
            weight = self.pack(x.shape)
        if other is None:
            how = self._how if activation is None else _how(activation)
            y: Tensor = ONEDNN[0](x, weight, self.bias, *self.window, self.groups, *how)
            return y
        if activation is None or activation.name == "relu":
            more = _SUM if activation is None else _SUM_RELU
            y = ONEDNN[1](x, other, weight, self.bias, *self.window, self.groups, *more)
            return y
        return activation.apply(self(x, other))

    def _plain(self, x: Tensor, other: Tensor | None, activation: Activation | None) -> Tensor:
        padding, stride, dilation = self.window
        weight = self._plain_weight()
        activation = activation if other is not None else activation or self.activation
        if _cudnn_fuses(x, weight, other, activation):
            window = stride, padding, dilation, self.groups
            if other is None:
                return torch.cudnn_convolution_relu(x, weight, self.bias, *window)
            return torch.cudnn_convolution_add_relu(x, weight, other, 1.0, self.bias, *window)
        y = F.conv2d(x, weight, self.bias, stride, padding, dilation, self.groups)
        y = y if other is None else other + y
        return y if activation is None else activation.apply(y)

    def _apply(self, *args: Any, **kwargs: Any) -> PackedConv:
        return self  # the prepared model says what may move

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedConv:
        return self  # nothing in it ever changes

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ArgumentError(
            "a prepared model cannot be pickled: its weights are laid out for this machine. Save "
            "the model that it was made from (dmnn_convert.save), and prepare it where it runs."
        )

    def extra_repr(self) -> str:
        """Show the geometry."""
        name = None if self.activation is None else self.activation.name
        return (
            f"{self.in_channels}, {self.out_channels}, kernel={self.kernel}, "
            f"stride={self.window[1]}, groups={self.groups}, "
            f"activation={name}, packed={self.packs}"
        )
