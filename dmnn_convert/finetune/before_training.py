"""The preparation of a converted network for training."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from ..data import readable
from ..distributed import Processes
from ..nn import multi_path_blocks
from ..refit import calibrate, reconstruct
from .network import Networks
from .recipe import Recipe


def prepare(
    recipe: Recipe, networks: Networks, loader: Iterable[Any], processes: Processes
) -> None:
    """Bring the network close to its source, in evaluation and in training mode, in place.

    All processes end with the same parameters and buffers.

    Args:
        recipe: the steps, and the number of batches for each.
        networks: only a network with a trained source's weights is changed.
        loader: this process's training batches.
        processes: which process this is.
    """
    if not networks.at_source:
        return
    model, source = networks.model, networks.source
    shown = processes.is_main
    if recipe.reconstruct and any(block.approximate for block in multi_path_blocks(model)):
        reconstruct(model, source, readable(loader, recipe), recipe.reconstruct, progress=shown)
    if recipe.calibrate:
        calibrate(model, readable(loader, recipe), recipe.calibrate, progress=shown)
    # All have solved the same equations, but not necessarily on the same hardware.
    processes.share(chain(model.parameters(), model.buffers()))
