"""Networks without gates, run by an engine's session."""

from __future__ import annotations

import logging
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..convert import undisturbed
from ..errors import ArgumentError
from ..graph import copied, undone
from ..text import cause
from .alone import ENGINES, PRECISIONS, each_alone, is_installed, own_engines
from .careful import is_extraordinary
from .exported import PreparedFor
from .forms import same_outputs
from .onnx_file import write_onnx
from .session import Session, open_session
from .stopwatch import least_seconds

_log = logging.getLogger(__name__)

EXTRAS = {"onnxruntime": "deploy", "openvino": "openvino"}
"""By engine, the extra that installs it."""

CALLS = 5
"""Calls that time an engine."""


class EngineNetwork(PreparedFor):
    """A network without gates that an engine runs, on the CPU, for inference.

    In float32, or in bfloat16 if it was prepared with such images.

    Images of another size than it was prepared with run in PyTorch.

    Attributes:
        engine: its name.
        network: the same network in PyTorch, for images with large or non-finite values, for which
            engines might turn NaN into numbers.
    """

    def __init__(
        self,
        network: nn.Module,
        image: Tensor,
        engine: str,
        threads: int,
        sizes: Sequence[int],
        *,
        alone: bool,
    ) -> None:
        super().__init__()
        self.engine, self.network = engine, copied(network).eval().requires_grad_(False)
        self._like = image[:0]
        with tempfile.TemporaryDirectory(prefix="dmnn-convert-") as folder:
            file = Path(folder) / "network.onnx"
            write_onnx(network, image, file)
            precision = PRECISIONS[image.dtype]
            opened = partial(open_session, engine, str(file), threads, precision, alone=alone)
            self._any: Session = opened(None)
            # ONNX Runtime gains nothing from a fixed size.
            fixed = sizes if engine == "openvino" else ()
            places = tuple(image.shape[1:])
            self._by_size = {(b, *places): opened((b, *places)) for b in set(fixed)}
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's outputs for images (B, C, H, W)."""
        self.check_not_exported()
        self.check_images(images)
        # An engine may answer images of another size with other numbers, or with an error.
        other = images.shape[1:] != self._like.shape[1:] or len(images) == 0
        if other or is_extraordinary(images):
            with torch.no_grad():
                answer: Tensor = self.network(images)
            return answer
        run = self._by_size.get(tuple(images.shape), self._any)
        (array,) = run(images.detach().float().contiguous().numpy())
        return torch.from_numpy(array).to(images.dtype)

    def __deepcopy__(self, memo: dict[int, object]) -> EngineNetwork:
        return self  # nothing in it ever changes

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ArgumentError(
            f"a network in {self.engine} cannot be pickled: save the network that it was made "
            "from, and prepare that where it will run."
        )

    def extra_repr(self) -> str:
        """Show the engine."""
        return f"engine={self.engine!r}"


def engine_network(
    network: nn.Module,
    image: Tensor,
    engine: str,
    threads: int | None,
    sizes: Sequence[int],
    *,
    alone: bool = True,
) -> EngineNetwork | None:
    """Return a network in an engine, for images like one (1, C, H, W); None if it cannot be.

    It cannot if it does not export, or if its outputs would differ; a warning says so. `alone` says
    whether no other network in the engine runs between its calls.

    Raises:
        ArgumentError: if the engine is not installed, or runs no images of that dtype or device.
    """
    check_engine(engine, image)
    name = type(network).__name__
    try:
        number = threads or torch.get_num_threads()
        own = EngineNetwork(network, image, engine, number, sizes, alone=alone)
        with undone(network, whole=True), undisturbed(network, image.device):
            same = all(_answers_alike(own, network, image, size) for size in {*sizes, 2})
        if not same:
            _log.warning("prepare: %s gives other results than %s.", engine, name)
            return None
    except Exception as error:  # whatever exporters and engines raise
        _log.warning("prepare: %s does not run %s (%s).", engine, name, cause(error))
        return None
    return own


def _answers_alike(own: EngineNetwork, network: nn.Module, image: Tensor, size: int) -> bool:
    """Return whether an engine gives what a network does for two batches of a size."""
    noise = torch.randn(size, *image.shape[1:], generator=torch.Generator().manual_seed(0))
    images = torch.cat([image, noise.to(image.dtype)])[:size]
    # The second call differs where a network keeps something from the first.
    expected = [network(images.clone()) for _ in range(2)]
    return all(
        isinstance(each, Tensor) and same_outputs([own(images)], [each], images)
        for each in expected
    )


def check_engine(engine: str, image: Tensor) -> None:
    """Raise an error if an engine cannot run images like one (1, C, H, W)."""
    if engine not in ENGINES:
        raise ArgumentError(
            f"prepare(engine={engine!r}): choose auto, torch, {', '.join(ENGINES)}."
        )
    if not is_installed(engine):
        raise ArgumentError(
            f"prepare(engine={engine!r}): is not installed; "
            f'pip install "dmnn-convert[{EXTRAS[engine]}]", or take engine="torch".'
        )
    if engine not in {each.name for each in own_engines(image)}:
        raise ArgumentError(
            f"prepare(engine={engine!r}): runs float32 images on the CPU (OpenVINO "
            "bfloat16 too, if the processor has it), example_input is "
            f'{image.dtype} on {image.device}; take engine="torch".'
        )


def fastest_engine(
    network: nn.Module, fast: nn.Module, image: Tensor, threads: int | None, sizes: Sequence[int]
) -> str:
    """Return the fastest engine for a network on images like one (1, C, H, W), or "torch".

    Args:
        network: without gates, in evaluation.
        fast: the same in PyTorch's fastest form.
        image: one image.
        threads: with how many it runs; None for as many as PyTorch is set to.
        sizes: of the batches; every one counts alike.
    """
    engines = own_engines(image)
    if not engines:
        return "torch"
    over_torch: dict[str, list[float]] = {}
    for size in sizes:
        images = image.repeat(size, 1, 1, 1)
        with undone(fast, whole=True), torch.no_grad():
            in_torch = least_seconds(partial(fast, images.clone()), image.device)
        with each_alone(network, [images], threads, engines) as alone:
            for engine, process in alone.items():
                taken = statistics.median(process.seconds(0) for _ in range(CALLS))
                over_torch.setdefault(engine.name, []).append(taken / in_torch)
    means = {e: statistics.geometric_mean(r) for e, r in over_torch.items() if len(r) == len(sizes)}
    best = min(means, key=means.__getitem__, default="torch")
    return best if means.get(best, 1.0) < 1.0 else "torch"
