"""The logits in what a model returns: a tensor, a dict, or an output with fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..errors import ArgumentError

TakeLogits = str | Callable[[Any], Tensor] | None
"""The key or field of the logits, a function that returns them, or None for "logits" if any."""

_FIELD = "logits"


def logits_in(output: Any, logits: TakeLogits = None) -> Any:
    """Return the logits in a model's output; the whole output if nothing names them.

    Args:
        output: a model's output.
        logits: which part; None takes a dict's or an object's "logits", if it has them.
    """
    if callable(logits):
        return logits(output)
    if isinstance(output, Tensor):
        return output
    name = _FIELD if logits is None else logits
    if isinstance(output, Mapping):
        return output.get(name, output)
    return getattr(output, name, output)


def logits_of(output: Any, images: int, call: str, logits: TakeLogits = None) -> Tensor:
    """Return the logits (B, K) in a model's output.

    Args:
        output: a model's output.
        images: number of images that it was given.
        call: named in errors.
        logits: which part; None takes a dict's or an object's "logits", if it has them.

    Raises:
        ArgumentError: if they are not there, or not logits of all images.
    """
    found = logits_in(output, logits)
    if isinstance(found, Tensor) and found.dim() == 2 and len(found) == images:
        return found
    what = str(tuple(found.shape)) if isinstance(found, Tensor) else type(found).__name__
    if isinstance(found, Mapping):
        what += f" of {', '.join(map(str, found)) or 'nothing'}"
    raise ArgumentError(
        f"{call}: the model returned {what} for {images} images; it must return logits "
        f"({images}, classes). Give logits=, their key or a function that takes them out of the "
        "output; or wrap the model in a module that returns them."
    )
