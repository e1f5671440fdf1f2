"""Export of a plain network to ONNX, with the batch open."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConversionError
from ..graph import copied
from ..optional import needed
from ..runtime import write_onnx
from ..text import cause

EXTRA = "deploy"

_NO_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")


def exported(network: nn.Module, image: Tensor) -> Any:
    """Return a network as an ONNX model: "images" (batch, C, H, W) to "answers" (batch, ...).

    Batch norms are folded into convolutions. No name or line of the user's code is left inside.

    Args:
        network: plain, in evaluation, of one tensor to one tensor; it stays as it is.
        image: (1, C, H, W).

    Raises:
        ConversionError: for an operation that ONNX lacks, with the module that it is in.
    """
    for name in ("onnx", "onnxscript"):
        needed(name, EXTRA)
    try:
        model = _exported(network, image)
    except Exception as error:  # exporters raise whatever they meet
        raise not_exported(network, image, error) from error
    strip(model)
    return model


def not_exported(network: nn.Module, image: Tensor, error: Exception) -> ConversionError:
    """Return the error that says which module of a network cannot be exported, and why."""
    place, reason = _culprit(network, image, error)
    return ConversionError(
        f"deploy: {place} cannot be exported to ONNX ({reason}). Replace that operation, leave "
        "that part out of the network, or deploy it with engine='torch'."
    )


def why(error: Exception) -> str:
    """Return why an export failed: the operator that ONNX lacks, where that is it."""
    reason = cause(error)
    operator = _NO_OPERATOR.search(reason)
    return f"ONNX has no operator for {operator[1]}" if operator else reason


def _exported(network: nn.Module, image: Tensor) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        write_onnx(network, image, file)
        return needed("onnx", EXTRA).load(file)


def strip(model: Any) -> None:
    """Drop notes of the exporter from an ONNX model: paths of the user's files among them."""
    del model.metadata_props[:]
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        for holder in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
            del holder.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        del graph.value_info[:]


def _culprit(network: nn.Module, image: Tensor, error: Exception) -> tuple[str, str]:
    """Return the innermost module that cannot be exported by itself, and why."""
    place, reason = type(network).__name__, why(error)
    module, path, seen = network, "", image
    while True:
        for name, child, given in _called(module, seen):
            try:
                _exported(child, given)
            except Exception as inner:
                module, path, seen = child, f"{path}.{name}".lstrip("."), given
                place, reason = f"{path} ({type(child).__name__})", why(inner)
                break
        else:
            return place, reason


def _called(module: nn.Module, image: Tensor) -> list[tuple[str, nn.Module, Tensor]]:
    """Return the children that a pass calls with one tensor, and the tensors."""
    calls: list[tuple[str, nn.Module, Tensor]] = []

    def note(name: str) -> Any:
        def hook(child: nn.Module, given: tuple[Any, ...]) -> None:
            if len(given) == 1 and isinstance(given[0], Tensor):
                calls.append((name, child, given[0]))

        return hook

    own = copied(module).eval()
    for name, child in own.named_children():
        child.register_forward_pre_hook(note(name))
    with torch.no_grad():
        own(image.clone())
    for _, child, _ in calls:
        child._forward_pre_hooks.clear()
    return calls
