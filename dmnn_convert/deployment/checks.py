"""Checks before anything is written: engines, models and images, and equal answers."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..convert import deviation_of
from ..errors import ArgumentError, ConversionError
from ..graph import undone
from ..optional import needed
from ..text import cause
from .export import EXTRA
from .loaded import LoadedDeployment

ENGINES = {
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "torch": ("fp32",),
}
"""The precisions that each engine has on a processor."""

BOUNDS = {"fp32": 1e-4, "bf16": 0.1, "int8": 0.5}
"""Largest deviation of an answer from the model's, over the largest answer's magnitude."""

_EXTRAS = {"onnxruntime": EXTRA, "openvino": "openvino", "torch": EXTRA}

_ROUNDS = 10


def engines_for(engine: str, precision: str) -> list[str]:
    """Return the installed engines that can run a precision, the one that was asked for first.

    Raises:
        ArgumentError: for an unknown word, a precision that an engine lacks, or an engine that is
            not installed, with the pip line.
    """
    if precision not in BOUNDS or engine not in ("auto", *ENGINES):
        raise ArgumentError(
            f"deploy(engine={engine!r}, precision={precision!r}): choose an engine of auto, "
            f"{', '.join(ENGINES)}, and a precision of {', '.join(BOUNDS)}."
        )
    able = [name for name, precisions in ENGINES.items() if precision in precisions]
    if engine not in ("auto", *able):
        raise ArgumentError(
            f"deploy(engine={engine!r}, precision={precision!r}): {engine} has no {precision} on a "
            f"processor; give engine={able[0]!r}, or precision='fp32'."
        )
    if engine == "torch":
        return [engine]
    on_onnx = [name for name in able if name != "torch"]
    here = [name for name in on_onnx if importlib.util.find_spec(name)]
    asked = engine if engine != "auto" else (here or on_onnx)[0]
    needed(asked, _EXTRAS[asked])
    return [asked, *(name for name in here if name != asked)]


def check_example(example: Any) -> Tensor:
    """Return example images on the CPU.

    Raises:
        ArgumentError: if they are not images (B, C, H, W) of float32, all finite.
    """
    images = isinstance(example, Tensor) and example.dim() > 1 and len(example) > 0
    if not images or example.dtype != torch.float32 or not example.isfinite().all():
        got = type(example).__name__
        if isinstance(example, Tensor):
            got = f"{tuple(example.shape)} of {example.dtype}"
        raise ArgumentError(
            f"deploy(example={got}): give images (B, C, H, W) of float32, all finite, of the size "
            "of those to come."
        )
    checked: Tensor = example.detach().cpu().contiguous()
    return checked


def check_evaluation(network: nn.Module, call: str) -> None:
    """Check that a network is in evaluation.

    Raises:
        ArgumentError: if it is not.
    """
    if any(module.training for module in network.modules()):
        raise ArgumentError(
            f"{call}: is in training mode, in which norms work otherwise; call .eval() first."
        )


def check_network(network: nn.Module, images: Tensor) -> Tensor:
    """Return a network's answers to images (B, C, H, W), after checking that it can be deployed.

    Raises:
        ArgumentError: for one that is in training mode, not of float32, or does not return one
            tensor with a row per image.
    """
    call = f"deploy({type(network).__name__})"
    check_evaluation(network, call)
    dtypes = {p.dtype for p in network.parameters() if p.is_floating_point()}
    if dtypes - {torch.float32}:
        odd = ", ".join(sorted(map(str, dtypes)))
        raise ArgumentError(
            f"{call}: its weights are {odd}; call .float(), and say what it is to run in by "
            "precision=."
        )
    try:
        with undone(network, whole=True), torch.no_grad():
            answers = network(images.clone())
    except RuntimeError as error:
        raise ArgumentError(
            f"{call}: does not run on example, {tuple(images.shape)} of {images.dtype} "
            f"({cause(error)}); give images (B, C, H, W) as it takes them."
        ) from error
    if not isinstance(answers, Tensor) or answers.shape[:1] != images.shape[:1]:
        got = tuple(answers.shape) if isinstance(answers, Tensor) else type(answers).__name__
        raise ArgumentError(
            f"{call}: returns {got} for {len(images)} images; wrap it in a module that returns one "
            "tensor with a row for each."
        )
    if not answers.is_floating_point():
        raise ArgumentError(
            f"{call}: returns {answers.dtype}, which has no NaN to answer an image of NaN with; "
            "wrap it in a module that returns logits."
        )
    return answers


def parity(
    folder: Path,
    engines: Sequence[str],
    networks: Sequence[nn.Module],
    images: Tensor,
    precision: str,
) -> dict[str, float]:
    """Return the deviation of each engine's answers from the model's, relative to their size.

    Args:
        folder: where the files are.
        engines: to compare, the one to deploy for first; others may differ, and are left out.
        networks: what they were made from.
        images: (B, C, H, W) to compare on, in a batch and the first one alone.
        precision: says how near the answers must be.

    Raises:
        ConversionError: if the first engine's are too far, or it cannot run the files.
        ArgumentError: for a precision that this processor lacks.
    """
    expected = [answer for network in networks for answer in _answers(network, images)]
    found: dict[str, float] = {}
    for name in engines:
        try:
            asked = LoadedDeployment(folder, name).networks
            got = [
                torch.from_numpy(ask(some.numpy()))
                for ask in asked
                for some in (images, images[:1])
            ]
            off = max(deviation_of([a], [b]) for a, b in zip(got, expected, strict=True))
            reason = f"by {off:.2g} of the largest answer; {precision} allows {BOUNDS[precision]:g}"
        except ValueError as error:  # a precision that this processor lacks
            raise ArgumentError(f"deploy(precision={precision!r}): {error}") from error
        except Exception as error:  # whatever an engine meets
            off, reason = float("inf"), cause(error)
        if off <= BOUNDS[precision]:
            found[name] = off
        elif not found:
            raise ConversionError(
                f"deploy: {name} does not answer as the model does ({reason}). Give another "
                "engine, or another precision."
            )
    return found


def _answers(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return a network's answers to a batch, and then to its first image alone."""
    with undone(network, whole=True), torch.no_grad():
        return network(images.clone()), network(images[:1].clone())


def fastest_first(
    folder: Path, equal: Mapping[str, float], images: Tensor, engine: str
) -> list[str]:
    """Return the engines that give equal answers, the one asked for or the fastest one first.

    Each is timed alone: threads of one that wait for work slow the other.
    """
    if engine != "auto" or len(equal) < 2:
        return list(equal)
    return sorted(equal, key=lambda name: _time_of(LoadedDeployment(folder, name), images.numpy()))


def _time_of(network: LoadedDeployment, images: Any) -> float:
    taken = []
    network(images)
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        network(images)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)
