"""The preparation of a converted network for training."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from ..data import Batch
from ..distributed import Processes
from ..nn import multi_path_blocks
from ..refit import calibrate, reconstruct
from .network import Networks
from .option_groups import ConversionOptions


def prepare(
    options: ConversionOptions,
    networks: Networks,
    batches: Iterable[Batch],
    processes: Processes,
) -> None:
    """Bring the network close to its source, in evaluation and in training mode, in place.

    All processes end with the same parameters and buffers.

    Args:
        options: which steps, and on how many batches.
        networks: only a network with a trained source's weights is changed.
        batches: this process's, to train on; asked for twice.
        processes: which process this is.
    """
    if not networks.at_source:
        return
    model, source = networks.model, networks.source
    shown = processes.is_main
    if options.reconstruct and any(block.approximate for block in multi_path_blocks(model)):
        reconstruct(model, source, batches, options.reconstruct, progress=shown)
    if options.calibrate:
        calibrate(model, batches, options.calibrate, progress=shown)
    # All have solved the same equations, but not necessarily on the same hardware.
    processes.share(chain(model.parameters(), model.buffers()))
