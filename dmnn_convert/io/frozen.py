"""Saved frozen levels: JSON and safetensors in a directory, never a pickle."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

import torch
from torch import Tensor, nn

from ..budget import Level, freeze
from ..errors import ArgumentError, CheckpointError
from ..files import write_all, write_text
from ..nn import conversion_of
from .cascade import FORMAT, networks_of, read_described
from .fitted import level_to_json
from .weights import fill, read_weights, write_weights

LEVEL, WEIGHTS = "level.json", "level.safetensors"


def save_level(
    model: nn.Module,
    level: Level | Tensor,
    directory: str | os.PathLike[str],
    *,
    arch: str | None = None,
    num_classes: int | None = None,
) -> None:
    """Freeze a level of a converted model, and save the plain network to a directory.

    Args:
        model: the model that `dynamize` returned.
        level: as `freeze` takes it: a level, one by stage, or gates (total sub-blocks,).
        directory: made if need be; a level saved there before is replaced.
        arch: the zoo's name of the source, so that `load_level` can rebuild it ("resnet50").
        num_classes: classes that the source was built with, if not its default.

    Raises:
        ArgumentError: if the model was not converted as a whole, or cannot make the level.
        CheckpointError: if the directory cannot be written; what lay there stays.

    Example:
        >>> save_level(model, 0.5, "half")  # with arch="resnet50", load_level can build the source
        >>> logits = load_level("half", Net())(images)
    """
    conversion = conversion_of(model)
    if conversion is None:
        raise ArgumentError(
            f"save_level: {type(model).__name__} is not what dynamize returned; give that."
        )
    network = freeze(model, level)
    save_id = secrets.token_hex(8)
    described = {
        "format": FORMAT,
        "save_id": save_id,
        "arch": arch,
        "num_classes": num_classes,
        "networks": [type(network).__name__],
        "confidence": None,
        "mean": False,
        "conversion": conversion.config.to_dict(),
        "fitted": {"levels": [level_to_json(level)]},
    }
    write_all(
        Path(directory),
        {
            WEIGHTS: lambda path: write_weights(path, network.state_dict(), save_id),
            LEVEL: lambda path: write_text(path, json.dumps(described, indent=1)),
        },
    )


@torch.inference_mode(False)  # what is made under it could never be trained
def load_level(directory: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Load a saved level: a plain network, in evaluation.

    Args:
        directory: where `save_level` wrote.
        model: a fresh, unconverted source; None builds it by the saved name.

    Raises:
        CheckpointError: for a directory that is incomplete, damaged, or of another network.
        ArgumentError: if no model is given and none can be built by name.

    Example:
        >>> save_level(model, 0.5, "half")
        >>> load_level("half", Net()).block1.conv1.out_channels
        4
    """
    folder = Path(directory)
    described = read_described(folder / LEVEL)
    state = read_weights(folder / WEIGHTS, described["save_id"], LEVEL)
    if len(described["networks"]) != 1:
        raise CheckpointError(f"{folder / LEVEL}: is not one level; save it again.")
    (network,) = networks_of(folder / LEVEL, described, model, state)
    fill(network, state, folder / WEIGHTS, "Give load_level the source that was converted.")
    return network.eval()
