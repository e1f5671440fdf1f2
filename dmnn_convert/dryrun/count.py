"""The cost of a forward pass, in multiply-accumulates (MACs), module by module.

Convolutions and matrix products are counted as fvcore counts them. The shapes come from a forward
pass on the meta device, which computes nothing: fvcore's ``FlopCountAnalysis`` runs
``torch.jit.trace`` on real tensors, gives the same counts (a test holds the two equal) and takes
ten times as long.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..graph import own_streams, running_copy, undone
from ..nn import MultiPathBlock, Shares

Shape = tuple[int, ...]


class Cost(NamedTuple):
    """The costs and shapes of one forward pass.

    Attributes:
        macs: MACs of one image in each module by path, "" being the whole model.
        shapes: shapes of each module's first input and of its output, without the batch.
        calls: for each multi-path block, and where a nested one shares out channels, the shapes of
            its inputs in each call, with the batch.
    """

    macs: Counter[str]
    shapes: dict[str, tuple[Shape, Shape]]
    calls: dict[str, list[tuple[Shape, ...]]]


def measure(model: nn.Module, input_size: Shape) -> Cost:
    """Count one image's forward pass in evaluation mode, multi-path blocks with all gates on.

    Raises:
        RuntimeError: whatever the model raises if it does not run on this input size.
    """
    try:
        return _measure(running_copy(model, "meta"), input_size)
    except Exception:
        # Some models need values, which meta tensors lack; the error, if it is one, comes again.
        return _measure(running_copy(model), input_size)


def _measure(copied: nn.Module, input_size: Shape) -> Cost:
    copied.eval()
    for module in copied.modules():
        if isinstance(module, MultiPathBlock):
            module.execution = "masked"
    counter = MacCounter()
    for path, module in copied.named_modules():
        module.register_forward_pre_hook(functools.partial(counter.enter, path))
        module.register_forward_hook(functools.partial(counter.leave, path))
    with undone(copied), own_streams(copied), torch.no_grad(), counter:
        copied(example_images(copied, input_size, batch=1))
    return Cost(counter.macs, counter.shapes, counter.calls)


class MacCounter(TorchDispatchMode):
    """Attribute the MACs of convolutions and matrix products to the modules that run them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack: list[str] = []
        self.macs: Counter[str] = Counter()
        self.shapes: dict[str, tuple[Shape, Shape]] = {}
        self.calls: dict[str, list[tuple[Shape, ...]]] = {}

    def enter(self, path: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.stack.append(path)
        if isinstance(module, MultiPathBlock | Shares):
            shapes = tuple(tuple(x.shape) for x in inputs if isinstance(x, Tensor))
            self.calls.setdefault(path, []).append(shapes)

    def leave(self, path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.stack.pop()
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            self.shapes[path] = (tuple(inputs[0].shape[1:]), tuple(output.shape[1:]))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kind = func.overloadpacket
        if kind in _SHORTCUTS and args[0].is_meta:
            # Their meta forms are slow decompositions, and only the shape matters here.
            same = args[0] if str(kind).endswith("_") else torch.empty_like(args[0])
            batch_norm = kind is _aten.native_batch_norm
            return (same, same.new_empty(0), same.new_empty(0)) if batch_norm else same
        if kind in _ELEMENTWISE and _alike(args) and not kwargs:
            return args[0].new_empty(torch.broadcast_shapes(args[0].shape, args[1].shape))
        output = func(*args, **(kwargs or {}))
        count = _COUNTERS.get(kind)
        if kind is _aten.convolution and output.is_meta and args[0].numel() and not output.numel():
            # PyTorch 2.6 gives such a shape on the meta device alone.
            raise RuntimeError(f"a kernel is larger than its input {tuple(args[0].shape)}")
        if count is not None:
            macs = count(args, output)
            for path in _with_ancestors(self.stack):
                self.macs[path] += macs
        return output


def _with_ancestors(stack: list[str]) -> set[str]:
    # A forward may call what lies deeper without calling what holds it.
    parts = stack[-1].split(".") if stack else []
    return {*stack, *(".".join(parts[:i]) for i in range(1, len(parts)))}


def _convolution_macs(args: tuple[Any, ...], output: Tensor) -> int:
    # Each weight is multiplied once at every place that the kernel lies on.
    x, weight, transposed = args[0], args[1], bool(args[6])
    places = (x if transposed else output).shape[2:]
    return int(len(x) * weight.numel() * math.prod(places))


def _product_macs(first: int) -> Callable[[tuple[Any, ...], Tensor], int]:
    def count(args: tuple[Any, ...], output: Tensor) -> int:
        return int(output.numel() * args[first].shape[-1])

    return count


def _attention_macs(args: tuple[Any, ...], _: Any) -> int:
    query, key, value = (x.shape for x in args[:3])
    return int(math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _attention_layer_macs(args: tuple[Any, ...], _: Any) -> int:
    (batch, queries, width), keys = args[0].shape, args[1].shape[1]
    weights = args[5].numel() + args[7].numel()
    return int(batch * queries * (weights + 2 * keys * width))


def _recurrent_macs(args: tuple[Any, ...], _: Any) -> int:
    return int(math.prod(args[0].shape[:-1]) * (args[1].numel() + args[2].numel()))


_aten = torch.ops.aten


def _alike(args: tuple[Any, ...]) -> bool:
    """Return whether both operands are meta tensors of one type."""
    both = len(args) == 2 and all(isinstance(x, Tensor) and x.is_meta for x in args)
    return both and args[0].dtype == args[1].dtype


_ELEMENTWISE = {_aten.add, _aten.mul, _aten.sub, _aten.div}


_SHORTCUTS = {
    getattr(_aten, f"{name}{suffix}")
    for name in ("relu", "silu", "sigmoid", "hardswish", "hardsigmoid", "hardtanh", "gelu", "tanh")
    for suffix in ("", "_")
} | {_aten.native_batch_norm}


_COUNTERS: dict[Any, Callable[[tuple[Any, ...], Any], int]] = {
    _aten.convolution: _convolution_macs,
    _aten.mm: _product_macs(0),
    _aten.bmm: _product_macs(0),
    _aten.addmm: _product_macs(1),
    _aten.baddbmm: _product_macs(1),
    # What runs as one operation on a processor or GPU, and as products on the meta device.
    **{
        getattr(_aten, f"_scaled_dot_product_{kernel}"): _attention_macs
        for kernel in (
            *("flash_attention_for_cpu", "flash_attention", "efficient_attention"),
            *("cudnn_attention", "fused_attention_overrideable"),
        )
    },
    _aten._native_multi_head_attention: _attention_layer_macs,
    _aten.mkldnn_rnn_layer: _recurrent_macs,
}


def example_images(model: nn.Module, input_size: Shape, batch: int) -> Tensor:
    """Return zeros (B, *input_size) of the model's dtype and device."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(batch, *input_size, dtype=parameter.dtype, device=parameter.device)
