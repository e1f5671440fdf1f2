"""Copies of a model for traces and runs that must leave the model alone."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import ConversionError
from .copying import HOOKS, copied
from .side_effects import runs_own_code


def skeleton(model: nn.Module, device: str | None = None) -> nn.Module:
    """Copy the modules but share the parameters, without hooks; see `running_copy`."""
    new = _sharing_copy(model, device)
    for module in new.modules():
        vars(module).pop(_INSTALLED, None)
        for name in HOOKS:
            getattr(module, name).clear()
    return new


def running_copy(model: nn.Module, device: str | None = None) -> nn.Module:
    """Copy the modules for a run, with the hooks that are the model's own methods.

    A model may collect its outputs in hooks. A method is copied with its module. Any other function
    would act on objects outside the copy, and is left out. The parameters are shared, unless code
    of the user's runs, which may write into them.

    Raises:
        ConversionError: if the model cannot be copied.
    """
    new = (
        _copy(model, {})
        if device is None and runs_own_code(model)
        else _sharing_copy(model, device)
    )
    for _, hooks, key in _not_methods(new):
        del hooks[key]
    for module in new.modules():
        vars(module).pop(_INSTALLED, None)
    return new


_INSTALLED = "_output_capturing_hooks_installed"
"""How transformers' networks note that they have hooks; those without it get them when they run."""
_CAPTURING = "transformers.utils.output_capturing"


def foreign_hooks(model: nn.Module) -> list[tuple[str, dict[int, Any], int]]:
    """Return the hooks that a running copy lacks: path, table, key in it."""
    return [
        (path, hooks, key)
        for path, hooks, key in _not_methods(model)
        if getattr(hooks[key], "__module__", None) != _CAPTURING
    ]


def _not_methods(model: nn.Module) -> list[tuple[str, dict[int, Any], int]]:
    """Return the hooks that are not methods of the model's modules: path, table, key in it."""
    own = {id(module) for module in model.modules()}
    return [
        (path, getattr(module, name), key)
        for path, module in model.named_modules()
        for name in HOOKS
        for key, hook in getattr(module, name).items()
        if id(getattr(getattr(hook, "func", hook), "__self__", None)) not in own
    ]


def _sharing_copy(model: nn.Module, device: str | None) -> nn.Module:
    """Copy the modules but share the parameters.

    Args:
        model: what to copy.
        device: where to put empty tensors instead, "meta" for shapes only.

    Raises:
        ConversionError: if the model cannot be copied.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    if device is not None:
        memo = {
            key: nn.Parameter(p.detach().to(device), p.requires_grad) for key, p in memo.items()
        }
        memo |= {id(buffer): buffer.detach().to(device) for buffer in model.buffers()}
    return _copy(model, memo)


def _copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return copied(model, memo)
    except Exception as error:
        raise ConversionError(
            f"{type(model).__name__} cannot be copied ({error}); a model that copy.deepcopy "
            "refuses cannot be converted."
        ) from error
