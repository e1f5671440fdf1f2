"""Blocks that mix images, though their user vouched that an operation in them does not.

With all gates on, every image runs, and nothing shows. Here the first of two images runs a block
and the second one does not: masked, both are computed; skipping, only the first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..dryrun import Shape, example_images
from ..graph import TracedModel, running_copy, vouched
from ..nn import MultiPathBlock, force_gates, multi_path_blocks, set_execution, tensors_in
from .comparing import deviation_of, undisturbed
from .rewrite import Replacement

_log = logging.getLogger(__name__)

MIXES = 1e-3
"""A deviation, of the largest magnitude, that no rounding of another batch size explains."""


def mixing(
    model: nn.Module, traced: TracedModel, replacements: Sequence[Replacement], input_size: Shape
) -> dict[int, str]:
    """Return, by its place among the replacements, each vouched block that mixes images, and why.

    Args:
        model: the converted model.
        traced: the source's graph.
        replacements: the blocks of the model.
        input_size: shape of one image.
    """
    doubtful = {i: names for i, r in enumerate(replacements) if (names := _vouched(traced, r))}
    if not doubtful:
        return {}
    places = {id(block): i for i, block in enumerate(multi_path_blocks(model))}
    twin = running_copy(model).eval()
    like = example_images(model, input_size, batch=2)
    images = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)
    found = {}
    for i, names in doubtful.items():
        gates = _first_alone(multi_path_blocks(twin), places[id(replacements[i].block)])
        try:
            masked, skipped = (_run(twin, mode, gates, images) for mode in ("masked", "skip"))
        except Exception as error:  # whatever a model raises on noise, or on two images
            _log.warning("dynamize: whether %s keeps images apart is not checked: %s", names, error)
            continue
        if deviation_of(skipped, masked) > MIXES:
            found[i] = f"{names} was registered, but an image's result depends on the others"
    return found


def _vouched(traced: TracedModel, replacement: Replacement) -> str:
    """Return what the user vouches for in a block, for a message."""
    called = [
        node.target if (module := traced.module(node)) is None else type(module)
        for node in replacement.branch.region
    ]
    return ", ".join(dict.fromkeys(str(w.__name__) for w in called if vouched(w)))  # type: ignore[union-attr]


def _first_alone(blocks: Sequence[MultiPathBlock], place: int) -> Tensor:
    """Return gates (2, total) by which the second image leaves out as much of a block as it may."""
    rows = [torch.ones(2, block.controller.N) for block in blocks]
    rows[place][1, blocks[place].controller.keep_one :] = 0
    return torch.cat(rows, 1)


def _run(model: nn.Module, mode: str, gates: Tensor, images: Tensor) -> list[Tensor]:
    set_execution(model, mode)
    with undisturbed(model, images.device), force_gates(model, gates.to(images.device)):
        return tensors_in(model(images))
