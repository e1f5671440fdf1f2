"""The layer that makes a model's logits: timm's own statement, or what one forward pass shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..errors import ConversionError
from ..graph import own_streams, running_copy, undone
from .count import example_images
from .input_size import SIZES

_USUAL = 224
"""The side of an image that is tried first."""


class Classifier(NamedTuple):
    """A layer that tells classes apart.

    Attributes:
        path: its name in the model; "" for the model itself.
        layer: a linear layer, or a 1x1 convolution.
        classes: how many.
    """

    path: str
    layer: nn.Linear | _ConvNd
    classes: int


def classifier_of(model: nn.Module, classes: int | None = None) -> Classifier | None:
    """Return the layer that makes a model's logits.

    It is what timm's `get_classifier` returns, else the layer that the output of a forward pass
    was computed with last, on the meta device, where that costs nothing. The last registered layer
    is for models that do not run there, or whose logits come from another kind of layer.

    Args:
        model: any classifier of images; it stays as it is.
        classes: pass over layers that tell apart another number of classes; None for any.
    """
    layers = [
        Classifier(path, module, count)
        for path, module in model.named_modules()
        if (count := classes_told_by(module))
    ]
    fitting = (found for found in _likely(model, layers) if classes in (None, found.classes))
    return next(fitting, None)


def classes_told_by(module: nn.Module) -> int:
    """Return how many classes a layer can tell apart, 0 where it is no classifier."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or nn.parameter.is_lazy(weight):
        return 0
    if isinstance(module, _ConvNd):
        dense = set(module.kernel_size) == {1} and module.groups == 1 and not module.transposed
        return module.out_channels if dense else 0
    return module.out_features if isinstance(module, nn.Linear) else 0


def _likely(model: nn.Module, layers: list[Classifier]) -> Iterator[Classifier]:
    named = getattr(model, "get_classifier", None)
    layer = named() if callable(named) else None
    yield from (found for found in layers if found.layer is layer)
    if len(layers) > 1:
        last = _last_computed(model, [found.path for found in layers])
        yield from (found for found in layers if found.path == last)
    yield from reversed(layers)


def _last_computed(model: nn.Module, paths: Iterable[str]) -> str | None:
    """Return the path of the layer nearest to the output of a forward pass; None if unknown."""
    try:
        empty = running_copy(model, "meta")
        empty.eval()
    except ConversionError:
        return None
    for parameter in empty.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    weights = {id(empty.get_submodule(path).weight): path for path in paths}
    reached = _parameters_from(_output(empty))
    return next((weights[id(p)] for p in reached if id(p) in weights), None)


def _output(model: nn.Module) -> Tensor | None:
    """Return the logits of an image of the first size that a model runs on."""
    first = next((m for m in model.modules() if isinstance(m, _ConvNd)), None)
    if first is None:
        return None
    for side in (_USUAL, *SIZES):
        size = (first.in_channels, *(side,) * len(first.kernel_size))
        try:
            with undone(model), own_streams(model), torch.enable_grad():
                output = model(example_images(model, size, batch=1))
        except Exception:  # whatever a model raises on images of another size
            continue
        return output if isinstance(output, Tensor) else None
    return None


def _parameters_from(output: Tensor | None) -> Iterator[Tensor]:
    """Yield the parameters that a tensor was computed with, the last used ones first."""
    start = None if output is None else output.grad_fn
    nodes, seen = deque([start]), {start}
    while nodes:
        node = nodes.popleft()
        if node is None:
            continue
        if hasattr(node, "variable"):
            yield node.variable
        new = [other for other, _ in node.next_functions if other not in seen]
        seen.update(new)
        nodes.extend(new)
