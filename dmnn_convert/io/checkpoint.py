"""Saved conversions: JSON and safetensors in a directory, never a pickle."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..config import DynamizeConfig
from ..convert import Dynamized, convert
from ..errors import ArgumentError, CheckpointError, DmnnError
from ..files import write_all, write_text
from ..flops import FlopsTable
from ..foreign import parsed_json, text_of
from ..nn import check_own_statistics, conversion_of, make_room
from ..text import shown, some
from . import zoo
from .released import MODELS, own_source, released, released_names
from .weights import State, fill, read_weights, write_weights

CONFIG, WEIGHTS, TABLE = "config.json", "model.safetensors", "flops.json"


FORMAT = 1


def save(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    category_heads: bool = False,
) -> None:
    """Save a converted model to a directory, whole or not at all.

    Args:
        model: the model that `dynamize` returned.
        directory: created if need be; a model saved there before is replaced.
        arch: the zoo's name of the source, so that `load` can rebuild it ("resnet50").
        num_classes: classes that the source was built with, if not its default.
        category_heads: keep the training-time heads; without them this is an inference checkpoint.

    Raises:
        ArgumentError: if the model was not converted as a whole, or is inside `at_level`.
        CheckpointError: if the directory cannot be written; what lay there stays.

    Example:
        >>> save(model, "converted")  # with arch="resnet50", load can build the source
        >>> sorted(path.name for path in Path("converted").iterdir())
        ['config.json', 'flops.json', 'model.safetensors']
    """
    config, table = _conversion(model)
    check_own_statistics(model, "save")
    folder = Path(directory)
    save_id = secrets.token_hex(8)
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if category_heads or ".category_head." not in name
    }
    described = {
        "format": FORMAT,
        "save_id": save_id,
        "arch": arch,
        "num_classes": num_classes,
        "source_class": type(model).__name__,
        "training": model.training,
        "conversion": replace(
            config, num_categories=config.num_categories if category_heads else None
        ).to_dict(),
    }
    writers: dict[str, Callable[[Path], None]] = {
        WEIGHTS: lambda path: write_weights(path, state, save_id),
        TABLE: lambda path: write_text(path, table.to_json()),
        CONFIG: lambda path: write_text(path, json.dumps(described, indent=1)),
    }
    write_all(folder, writers)


class Saved(NamedTuple):
    """A saved model's description of itself.

    Attributes:
        arch: the source's name; None if `save` was given none.
        num_classes: classes that the source was built with, if not its default.
        config: how it was converted.
    """

    arch: str | None
    num_classes: int | None
    config: DynamizeConfig


def read_saved(directory: str | os.PathLike[str]) -> Saved:
    """Read how a saved model was made, without its weights.

    Raises:
        CheckpointError: if the directory is incomplete or damaged.
    """
    file = Path(directory) / CONFIG
    described = _read_config(file)
    config = _conversion_config(file, described["conversion"])
    return Saved(described.get("arch"), described.get("num_classes"), config)


@torch.inference_mode(False)  # what is made under it could never be trained
def load(directory: str | os.PathLike[str], model: nn.Module | None = None) -> Dynamized:
    """Load a saved model: rebuild the source, convert it the same way, fill in the weights.

    Args:
        directory: where `save` wrote; or the name of a released network, which is looked for in the
            checkout's ``models/`` (or in $DMNN_CONVERT_MODELS) and checked against its checksums.
        model: a fresh, unconverted source; None builds it by the saved architecture name.

    Raises:
        CheckpointError: for a directory that is incomplete, damaged, or of another model.
        ArgumentError: if no model is given and none can be built by name.

    Example:
        >>> save(model, "converted")
        >>> again, table = load("converted", Net())
        >>> torch.equal(again(images), model(images))
        True
    """
    given = Path(directory)
    of_release = None if given.exists() else released(str(directory))
    folder = of_release or _not_released(given)
    described = _read_config(folder / CONFIG)
    config = _conversion_config(folder / CONFIG, described["conversion"])
    state = read_weights(folder / WEIGHTS, described["save_id"], CONFIG)
    _check_sizes(described, config, state)
    source = _built(folder, described, trusted=of_release is not None) if model is None else model
    try:
        # Not verified: the weights that the saved conversion was checked with come later.
        converted, table = convert(source, config, config.blocks, verify=False)
    except DmnnError as error:
        raise CheckpointError(
            f"{folder}: the given {type(source).__name__} cannot be converted as the saved "
            f"{described['source_class']} was: {error}"
        ) from error
    make_room(converted, state)
    remedy = "Give load() the same source model that was converted."
    fill(converted, state, folder / WEIGHTS, remedy)
    converted.train(bool(described["training"]))
    return Dynamized(converted, table)


def _conversion(model: nn.Module) -> tuple[DynamizeConfig, FlopsTable]:
    conversion = conversion_of(model)
    if conversion is None or not isinstance(conversion.table, FlopsTable):
        raise ArgumentError(
            f"save: {type(model).__name__} is not what dynamize returned. Save the converted model "
            "itself, unwrapped (model.module of a DDP wrapper)."
        )
    return conversion.config, conversion.table


def _read_config(path: Path) -> dict[str, Any]:
    try:
        described = parsed_json(text_of(path))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); give a directory that save() wrote."
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path}: is truncated or not valid JSON ({error}); save the model again."
        ) from error
    known = {"format", "save_id", "conversion", "source_class", "training"}
    if not isinstance(described, dict) or not known <= set(described):
        raise CheckpointError(
            f"{path}: is not the config of a converted model; give a directory that save() wrote."
        )
    if described["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: has format {shown(described['format'])}, this version reads {FORMAT}; "
            "use the version of dmnn-convert that wrote it."
        )
    for name, kinds in _KINDS.items():
        if not isinstance(described.get(name), kinds):
            raise CheckpointError(
                f"{path}: its {name} is {shown(described.get(name))}, which save() never writes; "
                "save the model again."
            )
    return described


_KINDS: dict[str, tuple[type, ...]] = {
    "save_id": (str,),
    "source_class": (str,),
    "training": (bool,),
    "arch": (str, type(None)),
    "num_classes": (int, type(None)),
}
"""The entries of a config besides the conversion, which checks itself."""


def _conversion_config(path: Path, values: object) -> DynamizeConfig:
    if not isinstance(values, Mapping):
        raise CheckpointError(
            f"{path}: its conversion is a {type(values).__name__}, not an object; save "
            "the model again."
        )
    try:
        return DynamizeConfig.from_dict(values)
    except ArgumentError as error:
        raise CheckpointError(f"{path}: describes no conversion: {error}") from error


def _not_released(folder: Path) -> Path:
    if folder.exists():
        return folder  # errors are raised where it is read
    names = released_names()
    known = f"one of {some(names)}" if names else f"let ${MODELS} name the repository's models/"
    raise CheckpointError(
        f"load({str(folder)!r}): there is no such directory, and no released network of this name. "
        f"Give a directory that save() wrote, or {known}."
    )


def _built(folder: Path, described: Mapping[str, Any], *, trusted: bool) -> nn.Module:
    arch = described.get("arch")
    own = own_source(arch) if trusted and arch else None
    if own is not None:
        return zoo.build(own, num_classes=described.get("num_classes"))
    if not arch or not zoo.is_zoo_name(arch):
        # A factory's name runs code; only names of the zoos may come from a file.
        named = f"names {arch!r}, which would run code of its own" if arch else "names none"
        raise ArgumentError(
            f"load({str(folder)!r}): the architecture cannot be built by name ({CONFIG} {named}). "
            f"Build the source {described['source_class']} yourself: load(directory, model=...)."
        )
    return zoo.build(arch, num_classes=described.get("num_classes"))


def _check_sizes(described: Mapping[str, Any], config: DynamizeConfig, state: State) -> None:
    """Check a config's sizes against the weights before a model of these sizes is built."""
    sizes = {
        "num_classes": described.get("num_classes"),
        "hidden": config.gate.hidden,
        "num_categories": config.num_categories,
    }
    held = {size for tensor in state.values() for size in tensor.shape}
    odd = [f"{name} {shown(size)}" for name, size in sizes.items() if size and size not in held]
    if odd:
        raise CheckpointError(
            f"{CONFIG} and {WEIGHTS} do not belong together: no tensor has {', '.join(odd)}; save "
            "the model again."
        )
