"""A file of weights: tensors by name, each storage once, and the id of their save."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import CheckpointError
from ..foreign import check_tensors, parsed_json

State = dict[str, Tensor]


_SHOWN = 5


def write_weights(path: Path, tensors: Mapping[str, Any], save_id: str) -> None:
    """Write the tensors of a `state_dict`; other entries are left out.

    Args:
        path: the file.
        tensors: by name; those that share their memory are written once.
        save_id: shared by the files that belong to the same save.
    """
    state: State = {}
    aliases: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            continue
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.device)
        if tensor.numel() and place in first:
            aliases[name] = first[place]
            continue
        first[place] = name
        state[name] = tensor.detach().contiguous().clone()
    metadata = {"format": "pt", "save_id": save_id, "aliases": json.dumps(aliases)}
    save_file(state, path, metadata=metadata)


def read_weights(path: Path, save_id: str, config: str) -> State:
    """Read a file of `write_weights` onto the CPU.

    Args:
        path: the file.
        save_id: of the save that it must belong to.
        config: name of the file that says so, for the error.

    Raises:
        CheckpointError: for a file that is damaged, or of another save.
    """
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
            f"{path}: belongs to another save than {config} beside it; "
            "saving was interrupted, or files were mixed. Save the model again."
        )
    try:
        aliases = parsed_json(metadata.get("aliases", "{}"))
        state |= {name: state[original] for name, original in aliases.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its list of shared tensors is damaged ({error!r}); save the model again."
        ) from error
    return state


def fill(model: nn.Module, state: Mapping[str, Tensor], path: Path, remedy: str) -> None:
    """Put weights into a model, which takes their dtype if all have one.

    Args:
        model: has exactly these weights.
        state: by name.
        path: the file that they come from, for the error.
        remedy: what to do if they do not fit, a sentence.

    Raises:
        CheckpointError: if they do not fit, or are not usable.
    """
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
            f"{path}: the weights do not fit the model: {'; '.join(parts)}. {remedy}"
        )
    check_tensors(state, own, path)
    # Buffers may stay in float32 whatever the dtype, as those of controllers do.
    dtypes = {state[name].dtype for name, p in model.named_parameters() if p.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())
    with torch.no_grad():
        model.load_state_dict(dict(state))
