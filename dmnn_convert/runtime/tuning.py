"""Measured costs of blocks, kept on disk: each geometry is measured once per machine."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import write_all, write_text
from ..foreign import parsed_json, text_of
from ..nn import controllers, force_gates
from ..progress import Progress
from .costs import Costs
from .packed import ONEDNN, PackedConv
from .prepared_block import PreparedBlock
from .stopwatch import seconds_of
from .subsets import is_out_of_memory, say_out_of_memory

_log = logging.getLogger(__name__)


FORMAT = 1


def cache_file() -> Path:
    """Return the file of measured costs: $DMNN_CONVERT_CACHE, or in the user's cache folder."""
    given = os.environ.get("DMNN_CONVERT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "dmnn_convert" / "autotune.json"


class Tuning:
    """Costs by block geometry, input size, threads, machine and versions."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known = _read(file)
        self.measured: dict[str, Any] = {}

    def seconds(
        self, key: str, ways: Mapping[str, Callable[[], Any]], device: torch.device
    ) -> dict[str, float]:
        """Return the costs of each way to run a network, measuring unknown ones."""
        held = self.known.get(key)
        if isinstance(held, dict) and set(held) == set(ways) and all(map(_is_time, held.values())):
            return held
        if held is not None:
            self._say_damaged()
        self.measured[key] = taken = _interleaved(ways, device)
        return taken

    def _say_damaged(self) -> None:
        _log.warning("prepare: an entry of %s is damaged; it is measured again.", self.file)

    def costs(self, block: PreparedBlock, x: Tensor, shortcut: Tensor | None) -> Costs:
        """Return a block's costs for an input (B, C, H, W), measuring unknown ones."""
        key = _key(block, x, shortcut)
        if key in self.known:
            try:
                costs = Costs.from_dict(self.known[key])
            except (KeyError, TypeError, ValueError, AttributeError):
                costs = None
            if costs is not None and costs.fits(block.keys, masks=block.masked is not None):
                return costs
            self._say_damaged()
        costs = block.measure(x, shortcut)
        self.known[key] = self.measured[key] = costs.to_dict()
        return costs

    def keep(self) -> None:
        """Add the measurements to the file, keeping those that others have written meanwhile."""
        if not self.measured:
            return
        text = json.dumps({"format": FORMAT, "costs": {**_read(self.file), **self.measured}})
        try:
            write_all(self.file.parent, {self.file.name: lambda path: write_text(path, text)})
        except (OSError, CheckpointError) as error:
            _log.warning("prepare: the measured costs cannot be kept (%s).", error)


def _is_time(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


def _interleaved(ways: Mapping[str, Callable[[], Any]], device: torch.device) -> dict[str, float]:
    """Return the median seconds of each of several calls, taken in turn, after two to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_ROUNDS + 2):
        for name, call in ways.items():
            taken[name].append(seconds_of(call, device))
    return {name: statistics.median(found[2:]) for name, found in taken.items()}


def _read(file: Path) -> dict[str, Any]:
    try:
        held = parsed_json(text_of(file))
        known = held["costs"] if held["format"] == FORMAT else {}
        if not isinstance(known, dict):
            raise TypeError("costs are not a mapping")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        kind = type(error).__name__
        _log.warning("prepare: %s is damaged (%s: %s); it is written again.", file, kind, error)
        return {}
    return known


@functools.cache
def machine() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def name_of(device: torch.device) -> str:
    """Return the name of a GPU, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine()


def tf32() -> bool:
    """Return whether convolutions of float32 may round to TF32, on GPUs that have it."""
    # Once the newer setting has been used, reading the older one is an error.
    newer = getattr(getattr(torch.backends.cudnn, "conv", None), "fp32_precision", None)
    return torch.backends.cudnn.allow_tf32 if newer is None else newer == "tf32"


def _key(block: PreparedBlock, x: Tensor, shortcut: Tensor | None) -> str:
    activation = None if block.activation is None else block.activation.kind
    how = (ONEDNN is not None, sorted(block.subsets), block.masked is None, block.shift is None)
    parts = (
        *how,
        *(block.signature, tuple(x.shape), shortcut is None, str(x.dtype), activation),
        *_machine_parts(x.device),
    )
    return _hashed(parts)


def _machine_parts(device: torch.device) -> tuple[Any, ...]:
    parts = torch.get_num_threads(), torch.__version__, name_of(device)
    return (*parts, tf32()) if device.type == "cuda" else parts


def _hashed(parts: tuple[Any, ...]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def warm_up(network: nn.Module, images: Tensor) -> None:
    """Run every form of every block once, so that all weights are laid out."""

    def run_all(block: PreparedBlock, x: Tensor, shortcut: Tensor | None) -> None:
        for key in block.keys:
            try:
                block.run(key, x, shortcut)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or key not in block.subsets or key & (key - 1) == 0:
                    raise
                block.drop_subset(key)
                say_out_of_memory()
        try:
            if block.masked is not None:
                block.run_masked([max(block.keys)] * len(x), x, shortcut)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            block.masked = None
            say_out_of_memory()

    _at_blocks(network, images, run_all)


def tune(network: nn.Module, images: Tensor) -> None:
    """Find the costs of every block for a batch (B, C, H, W), B > 1, and remember them."""
    tuning = Tuning(cache_file())
    blocks = [m for m in network.modules() if isinstance(m, PreparedBlock)]
    with Progress(f"batch {len(images)}", len(blocks), shown=None) as bar:

        def find(block: PreparedBlock, x: Tensor, shortcut: Tensor | None) -> None:
            block.costs[tuple(x.shape)] = tuning.costs(block, x, shortcut)
            bar.update()

        _at_blocks(network, images, find)
    tuning.keep()


_ROUNDS, _RATE = 7, 0.5
"""Repetitions and execution rate with which the ways of a network are measured."""


def fastest(network: nn.Module, images: Tensor, ways: Mapping[str, Callable[[Tensor], Any]]) -> str:
    """Return the name of the fastest way to run a network on a batch (B, C, H, W)."""
    if len(ways) == 1:
        return next(iter(ways))
    blocks = [m for m in network.modules() if isinstance(m, PreparedBlock)]
    made_of = [(block.signature, sorted(block.subsets)) for block in blocks]
    convs = [repr(m) for m in network.modules() if isinstance(m, PackedConv)]
    what = (sorted(ways), made_of, convs, tuple(images.shape), _RATE)
    parts = (*what, *_machine_parts(images.device))
    tuning, total = Tuning(cache_file()), sum(controllers(network)[0].chain.sizes)
    drawn = torch.rand(len(images), total, generator=torch.Generator().manual_seed(0)) < _RATE
    with torch.no_grad(), force_gates(network, drawn.float()):
        calls = {name: functools.partial(way, images) for name, way in ways.items()}
        taken = tuning.seconds(_hashed(parts), calls, images.device)
    tuning.keep()
    return min(taken, key=lambda name: taken[name])


_Visit = Callable[[PreparedBlock, Tensor, Tensor | None], None]


def _at_blocks(network: nn.Module, images: Tensor, visit: _Visit) -> None:
    """Show `visit` each prepared block with its input and shortcut, in a pass with all gates on."""

    def show(block: nn.Module, inputs: Sequence[Any]) -> None:
        if isinstance(block, PreparedBlock):
            visit(block, inputs[0], inputs[1] if len(inputs) > 1 else None)

    blocks = [m for m in network.modules() if isinstance(m, PreparedBlock)]
    hooks = [block.register_forward_pre_hook(show) for block in blocks]
    try:
        with torch.no_grad(), force_gates(network, True):
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
