"""Modules narrowed to their first channels, sharing the tensors of the whole."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..errors import ArgumentError

_COUNTS = ("num_features", "num_parameters", "num_channels", "channels")


_REPLACED = "Replace layers before dynamize, or after freeze."


class Ends(NamedTuple):
    """The channels of a module that the first 1, 2, … sub-blocks of a nested block have.

    Attributes:
        rows: number of channels that it makes or keeps apart; None for all.
        columns: number of channels that it mixes; None for all.
    """

    rows: tuple[int, ...] | None
    columns: tuple[int, ...] | None


def shell(module: nn.Module) -> Any:
    """Copy a module, but neither its tensors nor its children."""
    new = type(module).__new__(type(module))
    new.__dict__ = {
        key: copy.copy(value) if isinstance(value, dict | set) else value
        for key, value in module.__dict__.items()
    }
    return new


def resized(layer: Any, groups: int) -> Any:
    """Set the channel counts of a convolution or linear layer from its weight, in place."""
    rows, columns = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = rows, columns
    else:
        layer.groups, layer.out_channels, layer.in_channels = groups, rows, columns * groups
    return layer


def recounted(module: Any, channels: int, count: int) -> Any:
    """Set the counts of a channel-wise module to `channels` instead of `count`, in place."""
    if isinstance(module, nn.GroupNorm):
        groups, rest = divmod(module.num_groups * channels, count)
        if rest:
            raise ArgumentError(
                f"a GroupNorm of {module.num_groups} groups of {count} channels: {channels} of "
                f"them are no whole groups. {_REPLACED}"
            )
        module.num_groups = groups
    for name in _COUNTS:
        if getattr(module, name, None) == count and count > 1:
            setattr(module, name, channels)
    return module


def depends_on_width(module: nn.Module) -> bool:
    """Return whether a module would differ if it had fewer channels."""
    return _counted(module) or any(True for _ in (*module.parameters(), *module.buffers()))


def _counted(module: nn.Module) -> bool:
    return any(getattr(module, name, None) is not None for name in _COUNTS)


def narrowed(module: nn.Module, ends: Mapping[str, Ends], k: int, path: str = "") -> nn.Module:
    """Return a module with only the channels of the first `k` sub-blocks.

    Its tensors are views of the whole's: gradients and statistics reach these. Modules without
    cuts are the whole's own.

    Args:
        module: the whole.
        ends: by path of a module inside, where its cuts are.
        k: number of sub-blocks, from 1.
        path: of the module itself.
    """
    prefix = f"{path}." if path else ""
    if not any(name == path or name.startswith(prefix) for name in ends):
        return module
    new = shell(module)
    if path in ends:
        _check_as_converted(module, path)
        _cut(new, ends[path], k)
    for name, child in module._modules.items():
        if child is not None:
            new._modules[name] = narrowed(child, ends, k, f"{prefix}{name}")
    return new  # type: ignore[no-any-return]


def _check_as_converted(module: nn.Module, path: str) -> None:
    """Check that a module still has tensors of its own to be cut.

    Raises:
        ArgumentError: for a weight that is computed from others, or a module in its place.
    """
    held = {**module._parameters, **module._buffers}
    own = {name: tensor for name, tensor in held.items() if tensor is not None}
    if not isinstance(module, _ConvNd | nn.Linear):
        replaced = not own and not _counted(module)
    elif "weight" not in module._parameters:
        raise ArgumentError(
            f"{path}: its weight is computed, as by pruning or a parametrisation, and fewer "
            "sub-blocks take a part of it. Make it permanent first (torch.nn.utils.prune.remove, "
            "torch.nn.utils.parametrize.remove_parametrizations)."
        )
    else:
        by_row = (1, len(module.weight))  # as the gain of a scaled weight standardisation
        others = [own[name].numel() for name in own.keys() - {"weight", "bias"}]
        replaced = any(count not in by_row for count in others)
    if replaced:
        raise ArgumentError(
            f"{path}: a {type(module).__name__} was put in the place of a layer of a nested block, "
            f"and fewer sub-blocks take a part of that layer. {_REPLACED}"
        )


def _cut(module: Any, ends: Ends, k: int) -> None:
    for table in (module._parameters, module._buffers):
        for name, tensor in table.items():
            if tensor is not None:
                table[name] = _part(name, tensor, ends, k)
    if isinstance(module, _ConvNd | nn.Linear):
        groups = getattr(module, "groups", 1)
        kept = groups if ends.rows is None else groups * ends.rows[k - 1] // ends.rows[-1]
        resized(module, max(1, kept))
    elif ends.rows is not None:
        recounted(module, ends.rows[k - 1], ends.rows[-1])


def _part(name: str, tensor: Tensor, ends: Ends, k: int) -> Tensor:
    rows, columns = ends
    if rows is not None and tensor.dim() and len(tensor) == rows[-1]:
        tensor = tensor.narrow(0, 0, rows[k - 1])
    if columns is not None and name == "weight":
        tensor = tensor.narrow(1, 0, columns[k - 1])
    return tensor
