"""A plain network as an ONNX file, its batch open."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import copied


def write_onnx(network: nn.Module, image: Tensor, file: Path) -> None:
    """Write a plain network as an ONNX file: "images" (batch, C, H, W) to "answers" (batch, ...).

    Args:
        network: in evaluation; it stays as it is.
        image: (1, C, H, W), an example of its input.
        file: where to.

    Raises:
        Exception: whatever PyTorch's exporters raise for a network that they cannot follow.
    """
    own = copied(network).eval().cpu().float().requires_grad_(False)
    # A batch of one would be taken for a constant.
    images = image.detach().cpu().float().expand(2, *image.shape[1:]).contiguous()
    with torch.no_grad(), torch.autocast("cpu", enabled=False), exporting(own):
        try:
            # In a second; the other one takes half a minute for a ResNet-50.
            axes = {"images": {0: "batch"}}
            _export(own, (images,), file, dynamo=False, dynamic_axes=axes)
        except Exception:  # whatever it raises, and where PyTorch no longer has it
            shapes = ({0: torch.export.Dim("batch", min=1)},)
            _export(own, (images,), file, dynamo=True, dynamic_shapes=shapes)


@contextmanager
def exporting(network: nn.Module) -> Iterator[None]:
    """Silence PyTorch's exporters, and let them follow a network's own questions for sizes."""
    with _quiet(), _lengths_open(network):
        yield


@contextmanager
def _lengths_open(network: nn.Module) -> Iterator[None]:
    """Let `len` of a tensor be a size that exporters follow, in the forwards of a network.

    Python's own makes a plain number of it, which freezes the number of images.
    """
    forwards = (type(module).forward for module in network.modules())
    scopes = {id(scope): scope for f in forwards for scope in [getattr(f, "__globals__", {})]}
    own = [scope for scope in scopes.values() if "len" not in scope]
    try:
        for scope in own:
            scope["len"] = _length
        yield
    finally:
        for scope in own:
            scope.pop("len", None)


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else len(value)


def write_program(program: torch.export.ExportedProgram, file: Path) -> None:
    """Write an exported program, whose only input are images, as an ONNX file.

    Raises:
        Exception: whatever PyTorch's exporter raises for a program that it cannot translate.
    """
    with torch.no_grad(), _quiet():
        _export(program, (), file, dynamo=True)


def _export(network: Any, args: tuple[Tensor, ...], file: Path, **how: Any) -> None:
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["answers"]}
    torch.onnx.export(network, args, str(file), verbose=False, external_data=False, **names, **how)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, except for warnings of a value that tracing would freeze."""
    logs = [logging.getLogger(f"torch.{name}") for name in ("onnx", "fx", "export")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    printing: Any = torch._C
    pages = getattr(printing, "_jit_onnx_log", None)
    # PyTorch 2.14 prints the graph that it cannot export to stdout, and has no way to forbid it.
    printing._jit_onnx_log = lambda *_: None
    try:
        # The graph that cannot be exported, on stderr.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            tracing: Any = torch.jit
            warnings.simplefilter("error", tracing.TracerWarning)
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)
        printing._jit_onnx_log = pages
