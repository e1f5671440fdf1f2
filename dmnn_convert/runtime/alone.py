"""Engines timed separately, each in its own process."""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..convert import deviation_of, undisturbed
from ..graph import undone
from ..nn import tensors_in
from ..text import cause
from . import session
from .forms import PRECISE, ROUGH
from .onnx_file import write_onnx

_log = logging.getLogger(__name__)


class Engine(NamedTuple):
    """An engine and the precision that it computes in."""

    name: str
    precision: str = "fp32"

    def __str__(self) -> str:
        return self.name if self.precision == "fp32" else f"{self.name} {self.precision}"


ENGINES = ("onnxruntime", "openvino")
"""Engines beside PyTorch, which run ONNX files."""


PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
"""By images' dtype, the precision in which an engine answers them as PyTorch does."""


QUIET = 0.1
"""Seconds until an engine's threads have stopped spinning after a call."""


def is_installed(name: str) -> bool:
    """Return whether an engine can be imported."""
    return importlib.util.find_spec(name) is not None


def engines_for(images: Tensor) -> list[Engine]:
    """Return the installed engines that run such images, in every precision."""
    if images.device.type != "cpu" or images.dtype not in (torch.float32, torch.bfloat16):
        return []
    found = [Engine(name) for name in ENGINES if is_installed(name)]
    if is_installed("openvino") and session.has_bf16():
        found.append(Engine("openvino", "bf16"))
    return found if images.dtype is torch.float32 else [e for e in found if e.precision == "bf16"]


def own_engines(images: Tensor) -> list[Engine]:
    """Return the installed engines that compute in the precision of such images."""
    return [e for e in engines_for(images) if e.precision == PRECISIONS.get(images.dtype)]


class Alone:
    """An engine's session in a process of its own, which times it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def seconds(self, which: int) -> float:
        """Return the seconds of one of its batches, after a call that is not counted."""
        time.sleep(QUIET)
        self._ask(which)
        taken = float(self._answer())
        time.sleep(QUIET)
        return taken

    def _ask(self, which: int) -> None:
        if self.process.stdin is not None:
            self.process.stdin.write(f"{which}\n")
            self.process.stdin.flush()

    def _answer(self) -> Any:
        line = "" if self.process.stdout is None else self.process.stdout.readline()
        if not line:
            raise RuntimeError("the engine's process has ended")
        return json.loads(line)

    def wait(self) -> None:
        """Wait until it has answered its first batch.

        Raises:
            RuntimeError: if it has ended instead.
        """
        self._answer()


@contextmanager
def each_alone(
    network: nn.Module, batches: Sequence[Tensor], threads: int | None, engines: Sequence[Engine]
) -> Iterator[dict[Engine, Alone]]:
    """Open sessions of a network in processes of their own; return those with equal outputs.

    Args:
        network: without gates, in evaluation, on the CPU; it stays as it is.
        batches: images (B, C, H, W), all of one size.
        threads: of each; None for as many as PyTorch is set to.
        engines: which ones.
    """
    if not engines:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="dmnn-convert-") as folder:
        file = Path(folder) / "network.onnx"
        try:
            write_onnx(network, batches[0][:1], file)
        except Exception as error:  # whatever the exporters raise
            _log.warning(
                "%s does not export to ONNX (%s); it is timed in PyTorch alone.",
                type(network).__name__,
                cause(error),
            )
            yield {}
            return
        with file_alone(file, network, batches, threads, engines) as found:
            yield found


@contextmanager
def file_alone(
    file: Path,
    network: nn.Module,
    batches: Sequence[Tensor],
    threads: int | None,
    engines: Sequence[Engine],
) -> Iterator[dict[Engine, Alone]]:
    """Open sessions of an ONNX file as `each_alone` does; return those equal to a network."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dmnn-convert-")))
        files = [str(folder / f"{i}.npy") for i in range(len(batches))]
        for name, batch in zip(files, batches, strict=True):
            np.save(name, batch.detach().float().contiguous().numpy())
        found = {}
        for engine in engines:
            answers = folder / f"{engine}.npz"
            task = {
                **{"engine": engine.name, "precision": engine.precision, "file": str(file)},
                **{"threads": threads or torch.get_num_threads()},
                **{"batches": files, "answers": str(answers)},
            }
            alone = Alone(stack.enter_context(_process(task)))
            if _gives_the_same(alone, engine, network, batches[0], answers):
                found[engine] = alone
        yield found


@contextmanager
def _process(task: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(session.__file__)), json.dumps(task)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _gives_the_same(
    alone: Alone, engine: Engine, network: nn.Module, images: Tensor, answers: Path
) -> bool:
    try:
        alone.wait()
    except RuntimeError:
        _log.warning("%s does not run %s; it is not timed.", engine, type(network).__name__)
        return False
    with np.load(answers) as file:
        got = [torch.from_numpy(file[name]) for name in file.files]
    with undone(network, whole=True), undisturbed(network, images.device):
        expected = [t.float() for t in tensors_in(network(images.clone()))]
    rough = engine.precision == "bf16" or images.dtype is not torch.float32
    if deviation_of(got, expected) <= (ROUGH if rough else PRECISE):
        return True
    _log.warning("%s gives other results than %s; it is not timed.", engine, type(network).__name__)
    return False
