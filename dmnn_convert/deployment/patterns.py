"""Gate patterns of an exported network: the branches that its engine takes, against the model."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..convert import deviation_of
from ..errors import ConversionError
from ..nn import controllers, force_gates, tensors_in
from ..optional import needed
from ..progress import tracked
from ..runtime import open_session
from .branching import MOST
from .export import EXTRA

_ALWAYS = 1e6
"""A margin that no image changes."""


def subsets(N: int) -> Iterator[tuple[int, ...]]:
    """Yield the subsets of N sub-blocks that are compared; of many the smallest and largest ones.

    Blocks whose subsets have layers of their own have few enough for all of them.
    """
    for length in range(N + 1):
        if N <= MOST or length in (0, 1, N - 1, N):
            yield from itertools.combinations(range(N), length)


def patterns_off_by(model: nn.Module, image: Tensor, file: Path, engine: str) -> float:
    """Return the largest deviation of an exported network from its model, over gate patterns.

    A pattern turns the same sub-blocks on in all blocks, so that every branch runs once. In a copy
    of the file, biases of the controllers' margins decide.

    Args:
        model: converted, in evaluation; its own gates are left as they are.
        image: (1, C, H, W).
        file: the ONNX file.
        engine: which is to run it.

    Raises:
        ConversionError: if the file has not one decision for each controller.
    """
    onnx = needed("onnx", EXTRA)
    proto, found = onnx.load(file), controllers(model)
    places = [
        (node, i)
        for node in proto.graph.node
        for i, name in enumerate(node.input)
        if name.endswith("gates.b3")
    ]
    if len(places) != len(found):
        raise ConversionError(
            f"deploy({type(model).__name__}): the exported file has {len(places)} decisions for "
            f"{len(found)} controllers, so that its gates cannot be checked; deploy a level or a "
            "cascade."
        )
    for n, (node, i) in enumerate(places):  # exporters keep equal tensors once
        node.input[i] = f"forced.{n}"
    names = [tensor.name for tensor in proto.graph.initializer]
    sizes = [controller.N for controller in found]
    worst = 0.0
    for chosen in tracked([*subsets(max(sizes))], "patterns of gates", shown=None):
        gates = [torch.tensor([float(n in chosen) for n in range(size)]) for size in sizes]
        for controller, own in zip(found, gates, strict=True):
            if controller.keep_one and not own.any():
                own[0] = 1.0
        forced = {f"forced.{n}": (2 * own - 1) * _ALWAYS for n, own in enumerate(gates)}
        del proto.graph.initializer[len(names) :]
        proto.graph.initializer.extend(
            onnx.numpy_helper.from_array(margins.numpy(), name) for name, margins in forced.items()
        )
        with torch.no_grad(), force_gates(model, torch.cat(gates)):
            expected = tensors_in(model(image.clone()))
        worst = max(worst, deviation_of(_answers(proto, image, engine), expected))
    return worst


def _answers(proto: Any, image: Tensor, engine: str) -> list[Tensor]:
    with tempfile.TemporaryDirectory(prefix="dmnn-convert-") as folder:
        file = Path(folder) / "forced.onnx"
        file.write_bytes(proto.SerializeToString())
        answers = open_session(engine, str(file), torch.get_num_threads())(image.numpy())
    return [torch.from_numpy(answer) for answer in answers]
