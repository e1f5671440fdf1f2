"""Gated networks exported: ONNX with `If`, programs with `torch.cond`, compiled packages."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..convert import deviation_of
from ..errors import ArgumentError, ConversionError
from ..frozen import plain_network
from ..nn import multi_path_blocks, tensors_in
from ..runtime import Engine, file_alone, is_installed, write_onnx, write_program
from .branching import APART, MERGED, branching, can_run_apart
from .checks import BOUNDS

ROUNDS = 15
"""How often each form is timed, at least."""


class GatedTimes(NamedTuple):
    """The time of a gated network for an image in an engine, and the dense network's.

    Attributes:
        engine: which.
        form: "merged" or "apart"; see `branching`.
        gated: median over the images, ms.
        dense: likewise, of the network with all sub-blocks on and no gates.
    """

    engine: str
    form: str
    gated: float
    dense: float

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
                f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); deploy a level or "
                "a cascade."
            ) from error


def write_gated(
    model: nn.Module,
    images: Sequence[Tensor],
    file: Path,
    *,
    engine: str = "onnxruntime",
    threads: int | None = None,
    dense: nn.Module | None = None,
) -> GatedTimes:
    """Write a converted model as an ONNX file for single images, in the form that runs fastest.

    Both forms, a branch for each subset of sub-blocks and one for each sub-block, are exported,
    compared with the model, and timed beside the dense network, each in a process of its own.

    Args:
        model: in evaluation, float32, on the CPU; it stays as it is.
        images: each (1, C, H, W): its own gates decide the times.
        file: where to.
        engine: "onnxruntime" or "openvino".
        threads: with how many it runs; None for as many as PyTorch is set to.
        dense: what to compare with, such as the source; None for the model with all gates on.

    Returns:
        The times; `advice` says what to deploy instead where gates save none.

    Raises:
        ArgumentError: for what `export_gated` refuses, no images, an engine that is not installed,
            or a model that gives something else there.
    """
    if not images:
        raise ArgumentError("write_gated(images=[]): give one image (1, C, H, W) or more.")
    if not is_installed(engine):
        raise ArgumentError(
            f"write_gated(engine={engine!r}): is not installed; pip install "
            '"dmnn-convert[deploy,openvino]".'
        )
    if dense is None:
        sizes = multi_path_blocks(model)[0].controller.chain.sizes
        dense = plain_network(model, torch.ones(sum(sizes)))
    apart = any(can_run_apart(block) for block in multi_path_blocks(model))
    forms = (MERGED, APART) if apart else (MERGED,)
    one = Engine(engine)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dmnn-convert-")))
        files = {form: folder / f"{form}.onnx" for form in (*forms, "dense")}
        write_onnx(dense, images[0], files["dense"])
        for form in forms:
            write_program(export_gated(model, images[0], form), files[form])
        timers = {}
        for form, path in files.items():
            network = dense if form == "dense" else model
            found = stack.enter_context(file_alone(path, network, images, threads, [one]))
            if one in found:
                timers[form] = found[one]
        if "dense" not in timers or len(timers) < 2:
            raise ArgumentError(
                f"write_gated({type(model).__name__}): {engine} does not run it, or gives "
                "other results (see the warning above); deploy a level or a cascade."
            )
        taken: dict[str, list[float]] = {form: [] for form in timers}
        for i in range(max(ROUNDS, len(images))):  # in turn, so that a disturbance affects all
            for form, alone in timers.items():
                taken[form].append(1e3 * alone.seconds(i % len(images)))
        medians = {form: statistics.median(each) for form, each in taken.items()}
        full = medians.pop("dense")
        best = min(medians, key=medians.__getitem__)
        shutil.copyfile(files[best], file)
    return GatedTimes(engine, best, medians[best], full)


def write_package(network: nn.Module, images: Tensor, file: Path, *, gated: bool = False) -> Path:
    """Compile a network ahead of time (AOTInductor) into a package that needs no Python to run.

    Args:
        network: frozen, or any other without gates; or converted, which computes every sub-block
            (masked) unless `gated`. In evaluation; it stays as it is.
        images: (B, C, H, W): what the package takes, and nothing else.
        file: where to; its name ends in ``.pt2``.
        gated: whether the gates are branches, for one image.

    Raises:
        ArgumentError: where there is no C++ compiler, the name ends otherwise, or for what cannot
            be exported.
        ConversionError: if the package does not answer as the network does; nothing is left.
    """
    if file.suffix != ".pt2":
        raise ArgumentError(f"write_package(file={file.name!r}): give a name that ends in .pt2.")
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise ArgumentError(
            "write_package: AOTInductor needs a C++ compiler; install g++, or deploy to another "
            "engine."
        )
    if gated:
        program = export_gated(network, images)
    else:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            program = torch.export.export(network, (images,))
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    # PyTorch 2.14 changes the layout of weights for the program, but not for its branches.
    options = {"layout_optimization": False} if gated else None
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)
        got = tensors_in(aoti_load_package(str(file))(images))
        expected = tensors_in(network(images.clone()))
    off = deviation_of(got, expected)
    if not off <= BOUNDS["fp32"]:
        file.unlink()
        raise ConversionError(
            f"write_package: AOTInductor's package is off by {100 * off:.2g} % of the largest "
            "answer. Deploy to another engine."
        )
    return file
