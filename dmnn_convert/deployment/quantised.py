"""Static quantisation of an exported network to int8."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..optional import needed
from .export import EXTRA

_QUANTISER = "onnxruntime.quantization"


def quantised(model: Any, batches: Sequence[Tensor]) -> Any:
    """Return an ONNX model whose convolutions and matrix products are of int8.

    Weights have a scale for each output channel, and the ranges of activations are those of the
    calibration images. (Ranges by entropy, or NNCF's in place of ONNX Runtime's, were no better:
    docs/deploy.md.)

    Args:
        model: what `exported` returned; it stays as it is.
        batches: images (B, C, H, W) to calibrate with.
    """
    tools, onnx = needed(_QUANTISER, EXTRA), needed("onnx", EXTRA)
    shapes = needed(f"{_QUANTISER}.shape_inference", EXTRA)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        plain, file = Path(folder) / "plain.onnx", Path(folder) / "quantised.onnx"
        # Weights and bounds of activations become constants, which the quantiser looks for.
        shapes.quant_pre_process(model, str(plain), skip_symbolic_shape=True)
        tools.quantize_static(
            str(plain),
            str(file),
            _Reader(batches),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            # Weights of 7 bits: without VNNI, sums of products of 8 bits saturate, which cost a
            # trained ResNet-20 two points of accuracy.
            reduce_range=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
        )
        return onnx.load(str(file))


class _Reader:
    """Batches in the form that ONNX Runtime's quantiser asks for them."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch.numpy()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser's prints and logs: progress, and advice on its own options."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
