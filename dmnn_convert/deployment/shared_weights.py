"""Weights of several ONNX models, each kept once in a file beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WEIGHTS = "weights.bin"

_SMALL = 1024
"""Tensors of fewer bytes stay inside their model, for shapes and constants are among them."""


def shared_weights(models: Sequence[Any]) -> bytes | None:
    """Move equal tensors of ONNX models to one file, where that saves half of the size or more.

    Args:
        models: ONNX models; where it saves enough, they refer to the file afterwards.

    Returns:
        What the file `WEIGHTS` is to hold; None where the models stay as they are.
    """
    tensors = [t for m in models for t in m.graph.initializer if len(t.raw_data) >= _SMALL]
    unique = dict.fromkeys(t.raw_data for t in tensors)
    if 2 * sum(map(len, unique)) > sum(len(t.raw_data) for t in tensors) or not tensors:
        return None
    places, offset = {}, 0
    for data in unique:
        places[data], offset = offset, offset + len(data)
    for tensor in tensors:
        data = tensor.raw_data
        where = {"location": WEIGHTS, "offset": str(places[data]), "length": str(len(data))}
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
        for key, value in where.items():
            tensor.external_data.add(key=key, value=value)
    return b"".join(unique)
