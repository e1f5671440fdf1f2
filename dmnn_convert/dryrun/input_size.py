"""The input sizes that a model accepts, and the smallest that works."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..errors import ArgumentError, ConversionError
from ..graph import foreign_hooks, own_streams, running_copy, undone
from ..text import first_line
from .count import MacCounter, Shape, example_images, measure

SIZES = (8, 16, 28, 32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 384, 512)
"""Customary image sizes: with the halvings between two of them, some twenty attempts."""


def described(model: nn.Module) -> Mapping[str, Any]:
    """Return timm's description of the images that a model's weights were trained on, if any."""
    for name in ("pretrained_cfg", "default_cfg"):
        found = getattr(model, name, None)
        if isinstance(found, Mapping):
            return found
    return {}


def own_size(model: nn.Module) -> Shape:
    """Return the shape (C, H, W) that a network is made for: what timm says, or ImageNet's."""
    return tuple(described(model).get("input_size") or (3, 224, 224))


def check_input_size(model: nn.Module, input_size: Shape) -> None:
    """Check that a model runs on one image of this shape.

    Raises:
        ArgumentError: if it does not, with the smallest size that was found to work.
        ConversionError: if the model cannot be copied.
    """
    try:
        measure(model, input_size)
    except ConversionError:
        raise
    except Exception as error:
        raise does_not_run(model, input_size, error) from error


def does_not_run(model: nn.Module, input_size: Shape, error: Exception) -> ArgumentError:
    """Explain in the user's terms why a model does not run on images of this size."""
    left = sorted({path or "the model" for path, *_ in foreign_hooks(model)})
    if left:
        return ArgumentError(
            f"dynamize(input_size={input_size}): without the hooks on {', '.join(left)} the model "
            f"does not run on one image of this shape: {first_line(error)}. If it needs them, "
            "let them be methods of its modules (register_forward_hook(self.method)): other "
            "functions do not go with a copy of the model."
        )
    return ArgumentError(
        f"dynamize(input_size={input_size}): the model does not run on one image of this shape: "
        f"{first_line(error)}. {_further_inputs(model) or _advice(model, input_size)}"
    )


def _further_inputs(model: nn.Module) -> str:
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    named = [p.name for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
    if not named:
        return ""
    return (
        f"It also needs {', '.join(named)}; convert the part that reads the images in place: "
        "dynamize(model.<part>, inplace=True). Or do so through a module whose forward takes the "
        "images and calls the model with examples of the rest: dynamize(wrapper, inplace=True)."
    )


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _advice(model: nn.Module, input_size: Shape) -> str:
    first = next((m for m in model.modules() if isinstance(m, _ConvNd)), None)
    reads = f" (its first convolution reads {first.in_channels} channels)" if first else ""
    general = (
        f"Give the shape of one image without the batch dimension, as the model expects it{reads}."
    )
    if first is None or len(input_size) != 1 + len(first.kernel_size):
        return general
    if input_size[0] != first.in_channels:
        return general
    size = smallest_size(model, first.in_channels, len(first.kernel_size))
    if size is None:
        return general
    square = "square " if len(size) == 3 else ""
    return f"The smallest {square}input found to work is {'×'.join(map(str, size[1:]))}: {size}."


def smallest_size(model: nn.Module, channels: int, dimensions: int) -> Shape | None:
    """Return the smallest image (C, S, S, ...) that a model was found to run on; None for none.

    The model is tried on the meta device, on `SIZES` first, and then between the first of them
    that works and the one before: whatever works between two that fail is not found.
    """
    empty = running_copy(model, "meta")
    empty.eval()

    def works(side: int) -> bool:
        try:
            with undone(empty), own_streams(empty), torch.no_grad(), MacCounter():
                empty(example_images(empty, (channels, *(side,) * dimensions), batch=1))
        except Exception:
            return False
        return True

    fails = 0
    for side in SIZES:
        if works(side):
            break
        fails = side
    else:
        return None
    while side - fails > 1:
        middle = (fails + side) // 2
        fails, side = (fails, middle) if works(middle) else (middle, side)
    return (channels, *(side,) * dimensions)
