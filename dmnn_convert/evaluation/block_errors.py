"""The error of a converted model against its source, with all gates on."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..nn import MultiPathBlock, force_gates, tensors_in


def block_errors(source: nn.Module, model: nn.Module, images: Tensor) -> dict[str, float]:
    """Measure the output error that each converted block alone makes, with all gates on.

    Every module that encloses a converted block gets the input that the source's has, so that
    errors do not add up from block to block.

    Args:
        source: the model before conversion.
        model: the converted model.
        images: (B, C, H, W), real ones if the figure is to mean something.

    Returns:
        {path of the enclosing module: relative error ‖converted − source‖ / ‖source‖}; the path
        "" stands for the whole network, errors of all blocks together.

    Raises:
        ArgumentError: if the models do not belong together.

    Example:
        >>> errors = block_errors(source, model, images)
        >>> errors["block1"] < 1e-5  # this split is exact
        True
    """
    paths = {name.rpartition(".")[0] for name, m in model.named_modules() if _is_block(m)}
    seen = _observed(source, paths | {""}, images)
    evaluated = copy.deepcopy(model).eval()
    errors = {}
    with torch.no_grad(), force_gates(evaluated, True):
        for path in sorted(paths | {""}):
            arguments, options, expected = seen[path]
            got = evaluated.get_submodule(path)(*arguments, **options)
            errors[path] = relative_error(got, expected)
    return errors


def relative_error(got: Any, expected: Any) -> float:
    """Return ‖got − expected‖ / ‖expected‖ over all tensors in two outputs of one form."""
    pairs = list(zip(tensors_in(got), tensors_in(expected), strict=True))
    error = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    norm = sum(float(b.double().square().sum()) for _, b in pairs)
    return float((error / max(norm, 1e-60)) ** 0.5)


def _is_block(module: nn.Module) -> bool:
    return isinstance(module, MultiPathBlock)


def _observed(
    source: nn.Module, paths: set[str], images: Tensor
) -> dict[str, tuple[tuple[Any, ...], dict[str, Any], Any]]:
    observed = copy.deepcopy(source).eval()
    seen: dict[str, tuple[tuple[Any, ...], dict[str, Any], Any]] = {}
    names = {id(m): name for name, m in observed.named_modules() if name in paths}
    if len(names) != len(paths):
        raise ArgumentError("block_errors: the source lacks modules that the converted model has.")

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        kept = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
        seen[names[id(module)]] = (kept, kwargs, copy.deepcopy(output))

    for module in observed.modules():
        if id(module) in names:
            module.register_forward_hook(note, with_kwargs=True)
    with torch.no_grad():
        observed(images)
    return seen
