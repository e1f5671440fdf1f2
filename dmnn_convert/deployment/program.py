"""Exported programs of PyTorch as files, without a pickle in them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConversionError
from ..graph import copied
from ..runtime import exporting
from ..text import cause


def write_program(network: nn.Module, image: Tensor, file: Path) -> None:
    """Write a network as a program of `torch.export`, with the batch open.

    Args:
        network: plain, in evaluation; it stays as it is.
        image: (1, C, H, W), whose shape alone matters.
        file: ending in .pt2.

    Raises:
        ConversionError: if it cannot be exported.
    """
    own = copied(network).eval().requires_grad_(False)
    images = image.new_zeros(2, *image.shape[1:])  # one would be taken for a constant
    try:
        with exporting(own):
            program = torch.export.export(
                own, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)
            )
        torch.export.save(program, file)
    except Exception as error:  # whatever the exporter meets
        raise ConversionError(
            f"deploy(engine='torch'): {type(network).__name__} cannot be exported "
            f"({cause(error)}); leave that part out of the network."
        ) from error


def on_torch(file: str, _: str, threads: int | None) -> Callable[[Any], Any]:
    """Return a function of images, NumPy arrays, that PyTorch computes on the CPU."""
    _check_no_pickle(Path(file))
    network = torch.export.load(file).module()
    if threads is not None:
        torch.set_num_threads(threads)

    def ask(images: Any) -> Any:
        with torch.no_grad():
            # A copy, which the network may write into or return.
            return network(torch.from_numpy(np.array(images, order="C"))).numpy()

    return ask


def _check_no_pickle(file: Path) -> None:
    """Check that PyTorch will not unpickle any part of a program.

    Raises:
        CheckpointError: if it would.
    """
    with zipfile.ZipFile(file) as whole:
        for name in whole.namelist():
            if name.endswith("_config.json"):
                safe = '"use_pickle": true' not in json.dumps(json.loads(whole.read(name)))
            elif name.endswith(".pt"):
                safe = _loads_as_weights(whole.read(name))
            else:
                continue
            if not safe:
                raise CheckpointError(
                    f"{file}: its part {name} is a pickle, which deploy never writes; deploy again."
                )


def _loads_as_weights(data: bytes) -> bool:
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception:  # the unpickler raises whatever it meets
        return False
    return True
