"""Gated networks exported: ONNX with `If`, programs with `torch.cond`, compiled packages."""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..convert import deviation_of
from ..errors import ArgumentError, ConversionError
from ..frozen import plain_network
from ..graph import undone
from ..nn import multi_path_blocks, tensors_in
from ..optional import needed
from ..progress import tracked
from ..runtime import ENGINES, Alone, Engine, file_alone, is_installed, write_onnx, write_program
from ..text import cause
from .branching import APART, MERGED, branching, can_run_apart
from .checks import BOUNDS, check_evaluation
from .export import EXTRA, not_exported, strip, why
from .patterns import patterns_off_by

ROUNDS = 15
"""How often each form is timed, at least."""

_DENSE = "dense"

_log = logging.getLogger(__name__)


class GatedTimes(NamedTuple):
    """The time of a gated network for an image in an engine, and the dense network's.

    Attributes:
        engine: which.
        form: "merged" or "apart"; see `branching`.
        gated: median over the images, ms.
        dense: likewise, of the dense network that it is compared with.
        off_by: how far its answers were from the model's, of the largest, over gate patterns.
    """

    engine: str
    form: str
    gated: float
    dense: float
    off_by: float

    @property
    def advice(self) -> str | None:
        """What to deploy instead if the gates save no time; None if they do."""
        if self.gated < self.dense:
            return None
        return (
            f"in {self.engine} the gated network takes {self.gated:.2f} ms for an image, the dense "
            f"one {self.dense:.2f} ms: branches break what the engine fuses. Deploy a level, "
            "freeze(model, 0.5), or Cascade.fit(model, loader) instead; they keep its full speed."
        )


def export_gated(
    model: nn.Module, image: Tensor, form: str = MERGED
) -> torch.export.ExportedProgram:
    """Return a converted model as a program whose gates are branches (`torch.cond`).

    Args:
        model: in evaluation, on the CPU; it stays as it is.
        image: (1, C, H, W): what the program takes, and nothing else.
        form: see `branching`.

    Raises:
        ArgumentError: for what `branching` refuses, another batch than one image, or a model that
            torch.export cannot follow.
    """
    if not isinstance(image, Tensor) or image.dim() != 4 or len(image) != 1:
        got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ArgumentError(
            f"export_gated(image={got}): branches decide for one image; give (1, C, H, W). For "
            "batches, deploy a level or a cascade."
        )
    network = branching(model, form)
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        try:
            return torch.export.export(network, (image,))
        except ArgumentError:
            raise
        except Exception as error:  # whatever torch.export raises
            raise ArgumentError(
                f"export_gated({type(model).__name__}): torch.export cannot follow it "
                f"({cause(error)}); deploy a level or a cascade."
            ) from error


def write_gated(
    model: nn.Module,
    images: Sequence[Tensor],
    file: Path,
    *,
    engine: str = "auto",
    threads: int | None = None,
    dense: nn.Module | None = None,
) -> GatedTimes:
    """Write a converted model as an ONNX file for single images, in the form that runs fastest.

    Both forms, a branch for each subset of sub-blocks and one for each sub-block, are exported,
    compared with the model, and timed beside the dense network, each in a process of its own. The
    file is compared once more with every branch of every block taken.

    Args:
        model: in evaluation, float32, on the CPU; it stays as it is.
        images: each (1, C, H, W): its own gates decide the times.
        file: where to.
        engine: "onnxruntime", "openvino", or "auto" for the faster one of those installed.
        threads: with how many it runs; None for as many as PyTorch is set to.
        dense: what to compare with, such as the source; None for the model with all gates on.

    Returns:
        The times; `advice` says what to deploy instead where gates save none.

    Raises:
        ArgumentError: for what `export_gated` refuses, no images, or an engine that is not
            installed.
        ConversionError: for an operation that ONNX lacks, or a model that gives something else in
            every engine.
    """
    if not images:
        raise ArgumentError("write_gated(images=[]): give one image (1, C, H, W) or more.")
    engines = [Engine(name) for name in ENGINES if is_installed(name) and engine in ("auto", name)]
    if not engines:
        raise ArgumentError(
            f"write_gated(engine={engine!r}): is not installed; pip install "
            '"dmnn-convert[deploy,openvino]".'
        )
    if dense is None:
        sizes = multi_path_blocks(model)[0].controller.chain.sizes
        dense = plain_network(model, torch.ones(sum(sizes)))
    check_evaluation(dense, "write_gated(dense=...)")
    with tempfile.TemporaryDirectory(prefix="dmnn-convert-") as name:
        files = _write_forms(model, dense, images[0], Path(name))
        taken = _timed(files, model, dense, images, threads, engines)
        tried = {key: taken[key] for key in taken if key[1] != _DENSE and (key[0], _DENSE) in taken}
        for one, form in sorted(tried, key=tried.__getitem__):
            off_by = patterns_off_by(model, images[0], files[form], one)
            if off_by <= BOUNDS["fp32"]:
                shutil.copyfile(files[form], file)
                return GatedTimes(one, form, taken[one, form], taken[one, _DENSE], off_by)
            _log.warning("%s runs the form %r with other answers; it is left out.", one, form)
    raise ConversionError(
        f"write_gated({type(model).__name__}): {' and '.join(e.name for e in engines)} cannot run "
        "it, or give something else (see the warning above); deploy a level or a cascade."
    )


def _write_forms(
    model: nn.Module, dense: nn.Module, image: Tensor, folder: Path
) -> dict[str, Path]:
    """Write the forms that a model has, and the dense network, as ONNX files."""
    apart = any(can_run_apart(block) for block in multi_path_blocks(model))
    forms = (MERGED, APART) if apart else (MERGED,)
    files = {form: folder / f"{form}.onnx" for form in (*forms, _DENSE)}
    try:
        write_onnx(dense, image, files[_DENSE])
    except Exception as error:  # exporters raise whatever they meet
        raise not_exported(dense, image, error) from error
    for form in forms:
        program = export_gated(model, image, form)
        try:
            write_program(program, files[form])
            onnx = needed("onnx", EXTRA)
            proto = onnx.load(files[form])
            strip(proto)
            onnx.save(proto, files[form])
        except Exception as error:
            raise ConversionError(
                f"write_gated({type(model).__name__}): its branches cannot be exported to ONNX "
                f"({why(error)}); deploy a level or a cascade."
            ) from error
    return files


def _timed(
    files: Mapping[str, Path],
    model: nn.Module,
    dense: nn.Module,
    images: Sequence[Tensor],
    threads: int | None,
    engines: Sequence[Engine],
) -> dict[tuple[str, str], float]:
    """Return the median time of an image, ms, by engine and form; only where answers are right."""
    with ExitStack() as stack:
        timers: dict[tuple[str, str], Alone] = {}
        for form, path in files.items():
            network = dense if form == _DENSE else model
            found = stack.enter_context(file_alone(path, network, images, threads, engines))
            timers |= {(engine.name, form): alone for engine, alone in found.items()}
        taken: dict[tuple[str, str], list[float]] = {key: [] for key in timers}
        rounds = tracked(range(max(ROUNDS, len(images))), "images timed", shown=None)
        for i in rounds:  # in turn: what disturbs then disturbs all
            for key, alone in timers.items():
                taken[key].append(1e3 * alone.seconds(i % len(images)))
    return {key: statistics.median(each) for key, each in taken.items()}


def write_package(
    network: nn.Module, images: Tensor, file: str | os.PathLike[str], *, gated: bool = False
) -> Path:
    """Compile a network ahead of time (AOTInductor) into a package that needs no Python to run.

    Args:
        network: frozen, or any other without gates; or converted, which computes every sub-block
            (masked) unless `gated`. In evaluation; it stays as it is.
        images: (B, C, H, W): what the package takes, and nothing else.
        file: where to; its name ends in ``.pt2``.
        gated: whether the gates are branches, for one image.

    Raises:
        ArgumentError: for a network in training mode, where there is no C++ compiler, the name ends
            otherwise or its folder does not exist, or for what cannot be exported.
        ConversionError: if the package does not answer as the network does; nothing is left.
    """
    file = Path(file)
    check_evaluation(network, f"write_package({type(network).__name__})")
    if file.suffix != ".pt2" or not file.parent.is_dir():
        raise ArgumentError(
            f"write_package(file={str(file)!r}): give a name that ends in .pt2, in a folder that "
            "exists."
        )
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise ArgumentError(
            "write_package: AOTInductor needs a C++ compiler; install g++, or deploy to another "
            "engine."
        )
    if gated:
        program = export_gated(network, images)
    else:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            program = torch.export.export(network, (images.clone(),))
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    # PyTorch 2.14 changes the layout of weights for the program, but not for its branches.
    options = {"layout_optimization": False} if gated else None
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)
        got = tensors_in(aoti_load_package(str(file))(images.clone()))
        with undone(network, whole=True):
            expected = tensors_in(network(images.clone()))
    off = deviation_of(got, expected)
    if not off <= BOUNDS["fp32"]:
        file.unlink()
        raise ConversionError(
            f"write_package: AOTInductor's package is off by {100 * off:.2g} % of the largest "
            "answer. Deploy to another engine."
        )
    return file
