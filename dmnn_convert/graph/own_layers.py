"""User-defined subclasses of PyTorch's layers, and the layer that each of them amounts to.

A subclass that keeps the forward of its base counts as its base. A forward of its own is watched
while it runs on empty tensors: the layer counts as its base if the forward only pads the input with
zeros and passes it to the base's function, with the layer's weight and bias. If it computes another
weight first, filter by filter, it is a convolution that is cut by rows.

Norms that are frozen and activations that save memory count as those whose values they have.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from ..nn import AnyBatchNorm
from .frozen_norms import is_frozen_norm
from .libraries import is_library_layer
from .own_activations import activation_behind
from .skeletons import running_copy

_LAYERS = (_ConvNd, nn.Linear, _BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)


_FREE = frozenset(
    (
        *("__init__", "reset_parameters", "extra_repr", "__repr__", "train", "forward"),
        *("__module__", "__doc__", "__annotations__", "__constants__", "__orig_bases__"),
    )
)
"""Attributes that a subclass may define itself."""


_TENSORS = frozenset(("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))


class OwnLayer(NamedTuple):
    """The layer that a subclass amounts to, and whether it uses its weight unchanged."""

    base: type[nn.Module]
    plain: bool


def own_layer(module: nn.Module) -> OwnLayer | None:
    """Return the layer that a module of a user's class amounts to; None if none, or more."""
    if not isinstance(module, _LAYERS) or isinstance(module, _ConvTransposeNd):
        return _without_weight(module)
    weight = module._parameters.get("weight")  # not by name, which a trace would record
    if weight is None or "parametrizations" in module._modules:
        return None
    if is_library_layer(type(module)) or "_recipe" in vars(type(module)):
        return None
    if module not in _KNOWN:
        # Copies share the weight; looking at one of them is enough.
        settings = {k: v for k, v in vars(module).items() if k[0] != "_" and k != "training"}
        alike = _ALIKE.setdefault(weight, {})
        key = (type(module), repr(settings))
        if key not in alike:
            alike[key] = _looked_at(module)
        _KNOWN[module] = alike[key]
    return _KNOWN[module]


_KNOWN: weakref.WeakKeyDictionary[nn.Module, OwnLayer | None] = weakref.WeakKeyDictionary()


_ALIKE = WeakIdKeyDictionary()


def _without_weight(module: nn.Module) -> OwnLayer | None:
    if is_library_layer(type(module)):
        return None
    if module not in _KNOWN:
        frozen = isinstance(module._buffers.get("running_var"), Tensor) and is_frozen_norm(module)
        base = AnyBatchNorm if frozen else activation_behind(module)
        _KNOWN[module] = None if base is None else OwnLayer(base, True)
    return _KNOWN[module]


def _looked_at(module: nn.Module) -> OwnLayer | None:
    base = next(c for c in type(module).__mro__ if is_library_layer(c))
    own = [c for c in type(module).__mro__ if not is_library_layer(c) and issubclass(c, base)]
    changed = {name for c in own for name in vars(c)} & set(dir(base)) - _FREE
    tensors = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    if changed or tensors - _TENSORS or "forward" in vars(module):
        return None
    if inspect.getattr_static(type(module), "forward") is getattr(base, "forward", None):
        return OwnLayer(base, plain=True)
    if not isinstance(module, _ConvNd | nn.Linear | nn.BatchNorm2d):
        return None
    try:
        plain = all(
            _is_as_its_base(module, side, mode) for side in _SIDES for mode in (True, False)
        )
        if not plain and not (isinstance(module, _ConvNd) and _is_row_wise(module)):
            return None
    except Exception:  # whatever a forward raises on empty images
        return None
    return OwnLayer(base, plain)


_SIDES = (1, 2, 7, 32, 33)
"""Sizes to try, beyond the kernel's: the padding may depend on them."""


# --- what its forward does ----------------------------------------------------------------------


class _Calls(TorchFunctionMode):
    """Notes the functions that return a tensor, with their arguments by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, dict[str, Any], Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and func.__name__ != "__get__":
            name = func.__name__
            names = _ARGUMENTS.get(name, ())
            given = dict(enumerate(args)) if not names else dict(zip(names, args, strict=False))
            self.calls.append((name, {**given, **(kwargs or {})}, result))  # type: ignore[dict-item]
        return result


_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


_ARGUMENTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _CONV),
    "linear": ("input", "weight", "bias"),
    "batch_norm": tuple(inspect.signature(F.batch_norm).parameters),
    "pad": ("input", "pad", "mode", "value"),
}


def _ran(module: nn.Module, side: int) -> tuple[Tensor, list[Any], Tensor]:
    """Run a module's forward; return input, calls and output."""
    kernel = getattr(module, "kernel_size", (1, 1))
    dilation = getattr(module, "dilation", (1,) * len(kernel))
    places = [(k - 1) * d + side for k, d in zip(kernel, dilation, strict=True)]
    channels = getattr(module, "in_channels", 0) or getattr(module, "num_features", 0)
    weight: Any = module.weight
    like = {"device": weight.device, "dtype": weight.dtype}
    if isinstance(module, nn.Linear):
        x = torch.ones(2, side, module.in_features, **like)
    else:
        x = torch.ones(2, channels, *places, **like)
    with torch.no_grad(), _Calls() as seen:
        y = module.forward(x)
    return x, seen.calls, y


def _is_as_its_base(module: nn.Module, side: int, training: bool) -> bool:
    empty: Any = running_copy(module, "meta")
    for each in empty.modules():
        each.training = training
    x, calls, y = _ran(empty, side)
    *before, (name, given, result) = [c for c in calls if not _counts(empty, c)]
    value = _padded(x, before)
    names = ("weight", "bias", "running_mean", "running_var")
    own = all(given.get(n) is getattr(empty, n, None) for n in names)
    settled = name not in _ARGUMENTS or name == "pad" or _settings(empty, name, given)
    return own and settled and name != "pad" and given["input"] is value and y is result


def _counts(module: Any, call: Any) -> bool:
    """Return whether a call counts the batches of a norm."""
    _, given, _ = call
    return any(part is getattr(module, "num_batches_tracked", given) for part in given.values())


def _padded(value: Tensor, calls: list[Any]) -> Tensor | None:
    """Return the value behind paddings with zeros; None if anything else is done to it."""
    for name, given, result in calls:
        zeros = given.get("mode", "constant") == "constant" and not given.get("value")
        places = len(given.get("pad", ())) <= 2 * (value.dim() - 2)
        if name != "pad" or given["input"] is not value or not (zeros and places):
            return None
        value = result
    return value


def _settings(module: Any, name: str, given: dict[str, Any]) -> bool:
    if name == "batch_norm":
        return given.get("training", False) is module.training
    if name.startswith("conv"):
        return bool(given.get("groups", 1) == module.groups)
    return True


# --- weights that are made first ----------------------------------------------------------------


def _is_row_wise(conv: _ConvNd) -> bool:
    """Return whether each filter of a computed weight depends only on the same filter."""
    whole, half = (made_weight(conv, rows) for rows in (conv.out_channels, conv.out_channels // 2))
    if conv.groups > 1 or whole is None or half is None:
        return False
    return torch.equal(whole[: len(half)], half) or torch.allclose(whole[: len(half)], half)


def made_weight(conv: _ConvNd, rows: int | None = None) -> Tensor | None:
    """Return the weight that a layer computes from its first `rows` filters.

    None unless it passes its unchanged input to a convolution, with its own settings.
    """
    some: Any = running_copy(conv)
    for name, parameter in list(some._parameters.items()):
        if parameter is not None and rows is not None:
            some._parameters[name] = nn.Parameter(parameter.detach()[:rows], False)
            some.out_channels = rows
    x, calls, y = _ran(some, 2)
    convolutions = [c for c in calls if c[0].startswith("conv")]
    if len(convolutions) != 1:
        return None
    _, given, result = convolutions[0]
    settings = ("stride", "padding", "dilation", "groups")
    same = all(_pair(given.get(n, 1)) == _pair(getattr(some, n)) for n in settings if n in given)
    if not same or given["input"] is not x or y is not result:
        return None
    return given["weight"] if given.get("bias") is some.bias else None


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else tuple(value)
