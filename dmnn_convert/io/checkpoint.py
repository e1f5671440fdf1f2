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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..budget import make_room_for_levels
from ..config import DynamizeConfig
from ..convert import Dynamized, dynamize
from ..errors import ArgumentError, CheckpointError, DmnnError
from ..files import write_all, write_text
from ..flops import FlopsTable
from ..foreign import check_tensors, parsed_json, shown, text_of
from . import zoo

CONFIG, WEIGHTS, TABLE = "config.json", "model.safetensors", "flops.json"


FORMAT = 1


_SHOWN = 5


State = dict[str, Tensor]


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
        model: what `dynamize` returned.
        directory: created if need be; a model saved there before is replaced.
        arch: the zoo's name of the source, so that `load` can rebuild it ("resnet50").
        num_classes: classes that the source was built with, if not its default.
        category_heads: keep the training-time heads; without them this is an inference checkpoint.

    Raises:
        ArgumentError: if the model was not converted as a whole.
        CheckpointError: if the directory cannot be written; what lay there stays.
    """
    config, table = _conversion(model)
    folder = Path(directory)
    save_id = secrets.token_hex(8)
    state, aliases = _saveable(model, category_heads)
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
    metadata = {"format": "pt", "save_id": save_id, "aliases": json.dumps(aliases)}
    writers: dict[str, Callable[[Path], None]] = {
        WEIGHTS: lambda path: save_file(state, path, metadata=metadata),
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
    """Load what `save` wrote: rebuild the source, convert it the same way, fill in the weights.

    Args:
        directory: where `save` wrote.
        model: a fresh, unconverted source; None builds it by the saved architecture name.

    Raises:
        CheckpointError: for a directory that is incomplete, damaged, or of another model.
        ArgumentError: if no model is given and none can be built by name.
    """
    folder = Path(directory)
    described = _read_config(folder / CONFIG)
    config = _conversion_config(folder / CONFIG, described["conversion"])
    state = _read_weights(folder / WEIGHTS, described["save_id"])
    _check_sizes(described, config, state)
    source = _built(folder, described) if model is None else model
    try:
        converted, table = dynamize(
            source,
            config.N,
            split=config.split,
            gate=config.gate,
            input_size=config.input_size,
            where=config.blocks,
            num_categories=config.num_categories,
            tail_norm=config.tail_norm,
            order=config.order,
            verify=False,  # the weights that the saved conversion was checked with come later
        )
    except DmnnError as error:
        raise CheckpointError(
            f"{folder}: the given {type(source).__name__} cannot be converted as the saved "
            f"{described['source_class']} was: {error}"
        ) from error
    make_room_for_levels(converted, state)
    _fill(converted, state, folder / WEIGHTS)
    converted.train(bool(described["training"]))
    return Dynamized(converted, table)


def _conversion(model: nn.Module) -> tuple[DynamizeConfig, FlopsTable]:
    config, table = vars(model).get("dmnn_config"), vars(model).get("dmnn_table")
    if not isinstance(config, DynamizeConfig) or not isinstance(table, FlopsTable):
        raise ArgumentError(
            f"save: {type(model).__name__} is not what dynamize returned. Save the converted model "
            "itself, unwrapped (model.module of a DDP wrapper)."
        )
    return config, table


def _saveable(model: nn.Module, category_heads: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return contiguous tensors by name, each storage once, and the other names of each."""
    state: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or (".category_head." in name and not category_heads):
            continue
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.device)
        if tensor.numel() and place in first:
            aliases[name] = first[place]
            continue
        first[place] = name
        state[name] = tensor.detach().contiguous().clone()
    return state, aliases


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


def _built(folder: Path, described: Mapping[str, Any]) -> nn.Module:
    arch = described.get("arch")
    if not arch or not zoo.is_zoo_name(arch):
        # A factory's name runs code; only names of the zoos may come from a file.
        named = f"names {arch!r}, which would run code of its own" if arch else "names none"
        raise ArgumentError(
            f"load({str(folder)!r}): the architecture cannot be built by name ({CONFIG} {named}). "
            f"Build the source {described['source_class']} yourself: load(directory, model=...)."
        )
    return zoo.build(arch, num_classes=described.get("num_classes"))


def _read_weights(path: Path, save_id: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: is missing, truncated or damaged ({error}); save the model again."
        ) from error
    if metadata.get("save_id") != save_id:
        raise CheckpointError(
            f"{path}: belongs to another save than {CONFIG} beside it; "
            "saving was interrupted, or files were mixed. Save the model again."
        )
    try:
        aliases = parsed_json(metadata.get("aliases", "{}"))
        state |= {name: state[original] for name, original in aliases.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: says in no sound way which tensors are one ({error!r}); save the model again."
        ) from error
    return state


def _check_sizes(described: Mapping[str, Any], config: DynamizeConfig, state: State) -> None:
    """Check sizes that a config gives before a model is built of them: the weights have them."""
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


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or unexpected or wrong:
        parts = [
            f"{what} {', '.join(keys[:_SHOWN])}" + (" …" if len(keys) > _SHOWN else "")
            for what, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        parts += [
            f"{k}: file {tuple(state[k].shape)}, model {tuple(own[k].shape)}" for k in wrong[:5]
        ]
        raise CheckpointError(
            f"{path}: the weights do not fit the model: {'; '.join(parts)}. "
            "Give load() the same source model that was converted."
        )
    check_tensors(state, own, path)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())
    with torch.no_grad():
        model.load_state_dict(dict(state))
