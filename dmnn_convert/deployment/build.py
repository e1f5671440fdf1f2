"""`deploy`: a network or cascade as files that engines run, checked before they are written."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import Cascade
from ..dryrun import described
from ..errors import ArgumentError
from ..files import write_text
from ..graph import undone
from .calibration import Calibration, calibration_of, refitted
from .checks import check_example, check_network, engines_for, fastest_first, parity
from .export import exported
from .folder import README, RUNNER, check_free, describe, move_in, readme
from .gated import write_gated
from .loaded import LoadedDeployment
from .one_graph import CASCADE, add_one_graph
from .policy import GATED, Policy, policy_of
from .program import write_program
from .quantised import quantised
from .shared_weights import write_models

_TIMED = 16
"""Images that gates are timed on, at most."""

_log = logging.getLogger(__name__)


def deploy(
    model: nn.Module,
    directory: str | os.PathLike[str],
    example: Tensor,
    *,
    engine: str = "auto",
    precision: str = "fp32",
    calibration: Iterable[Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    dense: nn.Module | None = None,
) -> Path:
    """Write a frozen network, a level, a cascade or gates as files that inference engines run.

    The folder holds an ONNX model for each network, ``deploy.json``, which describes them, and
    ``run_deployed.py``, which runs them with NumPy and the engine alone. Before anything is
    written, the files' answers are compared with the model's.

    Gates of a converted network become branches (ONNX's ``If``), for one image after another, and
    are timed beside the dense network: branches break what engines fuse, so that they may take
    longer. A warning says so then, with both times.

    Args:
        model: in evaluation, of float32; it stays as it is.
        directory: made if need be; what was deployed there before is replaced.
        example: images (B, C, H, W) like those to come: of their size, float32, preprocessed.
            Batches of any number will do. Gates are timed on them, one by one.
        engine: "onnxruntime", "openvino" or "torch"; "auto" for the faster one of the first two
            on this machine.
        precision: "fp32"; "bf16", which OpenVINO has on processors with bf16 arithmetic; or
            "int8", for which the ranges of activations are taken from images.
        calibration: for int8, batches of images like the example, a few hundred in all; with
            labels (B,) for a cascade, whose thresholds are fitted again.
        preprocessing: how images are made ready, for the description; None for what timm says of
            the model, if it does.
        classes: their names, for the description.
        dense: for gates, the network to time them beside, such as the source; None for the model
            with all sub-blocks on.

    Returns:
        The directory.

    Raises:
        ArgumentError: for a model in training mode, an engine that is not installed or lacks the
            precision, gates in another than fp32, images that do not fit, or a directory with
            somebody else's files of the same names.
        ConversionError: for an operation that ONNX lacks, or answers that are not the model's.
        CheckpointError: if the directory cannot be written; what lay there stays.

    Example:
        >>> folder = deploy(freeze(model, 0.5), "deployed", images, engine="onnxruntime")
        >>> answers = load_deployed(folder)(images)
    """
    engines = engines_for(engine, precision)
    check_free(Path(directory))
    policy = policy_of(model)
    if policy.name == GATED:
        _check_branches(model, engine, precision)
    images = check_example(example)
    expected = [check_network(network, images) for network in policy.networks]
    classes = _class_names(classes)
    _check_answers(expected, classes)
    given = None
    if precision == "int8":
        given = calibration_of(calibration, images, labelled=isinstance(model, Cascade))
    told: dict[str, Any] = {
        "policy": policy.name,
        "precision": precision,
        "engines": engines,
        "input": images.shape[1:],
        "output": expected[0].shape[1:],
        "thresholds": policy.thresholds,
        "confidence": policy.confidence,
        "mean": policy.mean,
        "preprocessing": _preprocessing_of(policy.networks[0])
        if preprocessing is None
        else preprocessing,
        "classes": classes,
    }
    with undone(model), tempfile.TemporaryDirectory() as name:
        staged = Path(name)
        if policy.name == GATED:
            file, images = staged / "network.onnx", images[:_TIMED]
            (own,) = policy.networks
            times = write_gated(own, images.split(1), file, engine=engine, dense=dense)
            told["times"] = times._asdict()
            engines.sort(key=lambda name: name != times.engine)
            told["networks"] = files = [file.name]
            if times.advice:
                _log.warning("deploy: %s", times.advice)
        else:
            told["networks"], files = _write_networks(policy, images[:1], staged, engines, given)
        describe(staged, files, told)
        seen = images if given is None else given.batches[0]
        told["parity"] = parity(staged, engines, policy.networks, seen, precision)
        asked = engines[0] if policy.name == GATED else engine
        told["engines"] = fastest_first(staged, told["parity"], images, asked)
        if given is not None and isinstance(model, Cascade):
            loaded = LoadedDeployment(staged, told["engines"][0])
            told["thresholds"] = _refitted(model, policy, loaded, given)
        # OpenVINO is slower so, would decide in bf16, and quantises nothing inside of branches.
        if len(policy.networks) > 1 and "onnxruntime" in told["engines"]:
            describe(staged, files, told)
            files = add_one_graph(staged, files, images.numpy())
            if CASCADE in files:
                told["cascade"] = CASCADE
        if told["engines"] != ["torch"]:
            shutil.copyfile(RUNNER, staged / RUNNER.name)
        write_text(staged / README, readme(told, files))
        describe(staged, files, told)
        LoadedDeployment(staged)(images.numpy())
        move_in(staged, Path(directory))
    return Path(directory)


def _class_names(classes: Any) -> list[str]:
    """Return the names of classes, in order.

    Raises:
        ArgumentError: if they are not a sequence of names.
    """
    if isinstance(classes, str | bytes | Mapping) or not isinstance(classes, Iterable):
        raise ArgumentError(
            f"deploy(classes={type(classes).__name__}): give a list of names, one for each logit."
        )
    return [str(name) for name in classes]


def _check_branches(model: nn.Module, engine: str, precision: str) -> None:
    if precision != "fp32" or engine == "torch":
        raise ArgumentError(
            f"deploy({type(model).__name__}, engine={engine!r}, precision={precision!r}): gates "
            "are deployed as branches of an ONNX file, in fp32. Give a level, freeze(model, 0.5), "
            "or Cascade.fit(model, loader); for PyTorch, deployment.write_package(gated=True)."
        )


def _write_networks(
    policy: Policy, image: Tensor, folder: Path, engines: Sequence[str], given: Calibration | None
) -> tuple[list[str], list[str]]:
    """Write a file for each network; return their names, and those of all files."""
    several = len(policy.networks) > 1
    stems = [f"level{i}" if several else "network" for i in range(len(policy.networks))]
    if "torch" in engines:
        names = [f"{stem}.pt2" for stem in stems]
        for network, name in zip(policy.networks, names, strict=True):
            write_program(network, image, folder / name)
        return names, names
    names = [f"{stem}.onnx" for stem in stems]
    models = [exported(network, image) for network in policy.networks]
    if given is not None:
        models = [quantised(model, given.batches) for model in models]
    return names, write_models(folder, dict(zip(names, models, strict=True)))


def _refitted(
    cascade: Cascade, policy: Policy, loaded: LoadedDeployment, given: Calibration
) -> tuple[float, ...]:
    images = torch.cat(given.batches)
    with torch.no_grad():
        before = [torch.cat([net(b.clone()) for b in given.batches]) for net in policy.networks]
    after = [torch.from_numpy(ask(images.numpy())) for ask in loaded.networks]
    return refitted(cascade, before, after, given.labels, tuple(images.shape[1:]))


def _preprocessing_of(network: nn.Module) -> dict[str, Any] | None:
    own = described(network)
    names = ("mean", "std", "crop_pct", "interpolation")
    return {name: own[name] for name in names if name in own} or None


def _check_answers(expected: Sequence[Tensor], classes: Sequence[str]) -> None:
    shapes = [tuple(answers.shape[1:]) for answers in expected]
    if len(shapes) > 1 and (len(set(shapes)) > 1 or len(shapes[0]) != 1 or shapes[0][0] < 2):
        raise ArgumentError(
            f"deploy(Cascade): its networks return {shapes} for an image; they must return logits "
            "of the same classes."
        )
    if classes and (len(classes),) != shapes[0][-1:]:
        raise ArgumentError(
            f"deploy(classes=...): {len(classes)} names for answers {shapes[0]}; give one for each "
            "logit, in order."
        )
