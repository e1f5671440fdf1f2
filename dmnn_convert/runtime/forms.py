"""The fastest form of a model that still has the model's outputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..convert import deviation_of, undisturbed
from ..graph import defaults, undone
from ..nn import force_gates, tensors_in
from ..text import first_line
from .network import packed_blocks, packed_graph
from .prepared_model import PreparedModel
from .tuning import warm_up

_log = logging.getLogger(__name__)

PRECISE, ROUGH = 1e-3, 5e-2
"""Deviations, relative to the largest magnitude, that rounding explains: float32, shorter types."""


def fastest_form(model: nn.Module, image: Tensor) -> tuple[nn.Module, Tensor, Mapping[str, Any]]:
    """Return the fastest form with equal outputs, its kind of image, and its fixed arguments.

    Tracing cannot see everything that Python does, so one pass of each is compared.
    """
    laid_out = image.contiguous(memory_format=torch.channels_last)
    graph = packed_graph(model, laid_out)
    if graph is not None and _agrees(graph, laid_out, model, image):
        return graph, laid_out, defaults(model)
    blocks = packed_blocks(model)
    if _agrees(blocks, laid_out, model, image):
        return blocks, laid_out, {}
    _log.warning(
        "prepare: no faster form of %s gives the same results; it runs as it is.",
        type(model).__name__,
    )
    return model.requires_grad_(False), image.contiguous(), {}


def _agrees(network: nn.Module, laid_out: Tensor, model: nn.Module, image: Tensor) -> bool:
    """Compare two forms of a model, with all gates on and with half of them."""
    try:
        with undone(network, whole=True):
            warm_up(network, laid_out)  # gives up forms for which there is no memory
        got, expected = (
            _outputs(form, images) for form, images in ((network, laid_out), (model, image))
        )
    except Exception:  # whatever a model raises when it is rewritten
        return False
    return all(same_outputs(*pair, image) for pair in zip(got, expected, strict=True))


def same_outputs(got: Sequence[Tensor], expected: Sequence[Tensor], image: Tensor) -> bool:
    """Return whether rounding explains how outputs for an image differ."""
    exact = image.device.type == "cpu" and image.dtype in (torch.float32, torch.float64)
    return deviation_of(got, expected) <= (PRECISE if exact else ROUGH)


def _outputs(model: nn.Module, images: Tensor) -> list[list[Tensor]]:
    """Return a model's outputs with all gates on and then with half of them."""
    with undone(model, whole=True):
        return [_outputs_with(model, images, gates) for gates in (True, 0.5)]


def _outputs_with(model: nn.Module, images: Tensor, gates: bool | float) -> list[Tensor]:
    with undisturbed(model, images.device), force_gates(model, gates):
        return tensors_in(model(images.clone(memory_format=torch.preserve_format)))


def branches_rightly(prepared: PreparedModel, image: Tensor) -> bool:
    """Return whether one image can branch in a CUDA graph, with the masked form's outputs.

    Compared are all gates on, none and half of them, and the image's own.
    """
    ways = (prepared.run_branch_graph, prepared.run_masked)
    try:
        for gates in (True, False, 0.5, None):
            got, expected = (_way_with(way, prepared.network, image, gates) for way in ways)
            if not same_outputs(got, expected, image):
                return False
    except Exception as error:  # whatever a part of PyTorch raises that is not public yet
        _log.info("one image cannot branch in a CUDA graph: %s", first_line(error))
        return False
    return True


def _way_with(
    way: Callable[[Tensor], Any], network: nn.Module, image: Tensor, gates: bool | float | None
) -> list[Tensor]:
    # Each in a context of its own: a rate draws other gates in a second pass.
    forced = nullcontext() if gates is None else force_gates(network, gates)
    with torch.no_grad(), forced:
        return tensors_in(way(image))
