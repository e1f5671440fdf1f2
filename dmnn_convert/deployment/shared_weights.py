"""ONNX models of one folder, with the weights that they share in a file beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

WEIGHTS = "weights.bin"

_SMALL = 1024
"""Tensors of fewer bytes stay inside their model, for shapes and constants are among them."""


def write_models(folder: Path, models: Mapping[str, Any]) -> list[str]:
    """Write ONNX models by their names, and return the names of all files.

    Equal tensors are kept once, in a file of their own, where that saves half of the size or more;
    the models refer to it afterwards.
    """
    weights = _shared([model.graph for model in models.values()])
    if weights is not None:
        (folder / WEIGHTS).write_bytes(weights)
    for name, model in models.items():
        (folder / name).write_bytes(model.SerializeToString())
    return [*models, *([] if weights is None else [WEIGHTS])]


def _shared(graphs: Sequence[Any]) -> bytes | None:
    """Move equal tensors of graphs to one file; None if they stay where they are."""
    tensors = [t for t in _tensors(graphs) if len(t.raw_data) >= _SMALL]
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


def _tensors(graphs: Iterable[Any]) -> Iterator[Any]:
    """Yield the weights of graphs and of their branches."""
    for graph in graphs:
        yield from graph.initializer
        branches = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
        yield from _tensors(branches)
