"""Saved cascades: JSON and safetensors in a directory, never a pickle."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import budget
from ..budget import Confidence, freeze
from ..config import GateConfig
from ..convert import convert
from ..errors import ArgumentError, CheckpointError, DmnnError
from ..files import write_all, write_text
from ..foreign import parsed_json, text_of
from ..text import shown
from . import zoo
from .fitted import conversion_in, fitted_from_json, fitted_to_json, levels_in
from .weights import State, fill, read_weights, write_weights

CASCADE, WEIGHTS = "cascade.json", "cascade.safetensors"


FORMAT = 1


class Cascade(budget.Cascade):
    """Ask networks from the cheapest to the largest, until one is sure of its answer.

    A `budget.Cascade` that can be saved and loaded.

    Example:
        >>> cascade = Cascade.fit(model, held_out, levels=(0.25, 1.0), flops_ratio=0.9)
        >>> cascade.save("cascade")
        >>> logits = Cascade.load("cascade", Net())(images)
    """

    def save(
        self,
        directory: str | os.PathLike[str],
        arch: str | None = None,
        *,
        num_classes: int | None = None,
    ) -> None:
        """Save the cascade to a directory, whole or not at all.

        Args:
            directory: made if need be; a cascade saved there before is replaced.
            arch: the zoo's name of the source that the levels are of, so that `load` can rebuild it
                ("resnet50"); a cascade of networks of the user's own has none.
            num_classes: classes that the source was built with, if not its default.

        Raises:
            ArgumentError: for an `arch` of networks that are not levels of one source.
            CheckpointError: if the directory cannot be written; what lay there stays.
        """
        conversion = None if self.fitted is None else self.fitted.conversion
        if arch is not None and conversion is None:
            raise ArgumentError(
                f"Cascade.save(arch={arch!r}): these networks are not levels of one source that "
                "could be built by name. Leave arch out, and give the networks to Cascade.load."
            )
        save_id = secrets.token_hex(8)
        described = {
            "format": FORMAT,
            "save_id": save_id,
            "arch": arch,
            "num_classes": num_classes,
            "networks": [type(network).__name__ for network in self.networks],
            "confidence": self.confidence if isinstance(self.confidence, str) else None,
            "mean": self.mean,
            "conversion": None if conversion is None else conversion.to_dict(),
            "fitted": None if self.fitted is None else fitted_to_json(self.fitted),
        }
        write_all(
            Path(directory),
            {
                WEIGHTS: lambda path: write_weights(path, self.state_dict(), save_id),
                CASCADE: lambda path: write_text(path, json.dumps(described, indent=1)),
            },
        )

    @classmethod
    @torch.inference_mode(False)  # what is made under it could never be trained
    def load(
        cls,
        directory: str | os.PathLike[str],
        model: nn.Module | Sequence[nn.Module] | None = None,
        *,
        confidence: Confidence | None = None,
    ) -> Cascade:
        """Load a cascade that `save` wrote.

        Args:
            directory: where `save` wrote.
            model: a fresh, unconverted source; or, for networks of the user's own, a list of
                networks of the same shapes. None builds the source by the saved name.
            confidence: the function that the cascade was made with; functions are not saved.

        Raises:
            CheckpointError: for a directory that is incomplete, damaged, or of other networks.
            ArgumentError: if no model is given and none can be built by name, or no function.
        """
        folder = Path(directory)
        described = read_described(folder / CASCADE)
        measure = described["confidence"] or confidence
        if measure is None:
            raise ArgumentError(
                f"Cascade.load({str(folder)!r}): it decides by a function, which is not saved; "
                "give it: Cascade.load(directory, confidence=...)."
            )
        state = read_weights(folder / WEIGHTS, described["save_id"], CASCADE)
        count = len(described["networks"])
        thresholds = state.pop("thresholds", torch.zeros(0))
        if thresholds.shape != (count - 1,) or count < 2:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {count} networks and {thresholds.numel()} thresholds; save "
                "it again."
            )
        networks = networks_of(folder / CASCADE, described, model, state)
        for i, network in enumerate(networks):
            start = f"networks.{i}."
            own = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            remedy = "Give Cascade.load the source, or the networks, that the cascade was made of."
            fill(network, own, folder / WEIGHTS, f"Network {i}: {remedy}")
        cascade = cls(networks, thresholds.tolist(), confidence=measure, mean=described["mean"])
        cascade.fitted = fitted_from_json(folder / CASCADE, described, cascade)
        return cascade


def networks_of(
    file: Path,
    described: Mapping[str, Any],
    model: nn.Module | Sequence[nn.Module] | None,
    state: State,
) -> list[nn.Module]:
    """Return networks of the saved shapes, with any weights.

    Args:
        file: the file that describes them.
        described: its content.
        model: the source, or the networks; None to build the source by its saved name.
        state: the weights, which tell sizes.

    Raises:
        ArgumentError, CheckpointError: as `Cascade.load`.
    """
    names = described["networks"]
    if model is not None and not isinstance(model, nn.Module):
        kinds = [type(network).__name__ for network in model]
        if len(kinds) != len(names) or not all(isinstance(n, nn.Module) for n in model):
            raise ArgumentError(
                f"{file}: got {kinds}; give {len(names)} networks: {', '.join(names)}."
            )
        return list(model)
    if described["conversion"] is None:
        raise ArgumentError(
            f"{file}: is made of networks of your own; give them: "
            f"Cascade.load(directory, [{', '.join(names)}])."
        )
    levels = levels_in(file, described)
    source = _built(file, described, state) if model is None else model
    config = conversion_in(file, described["conversion"])
    try:
        # Controllers are left out; the weights that the conversion was checked with come later.
        plain = replace(config, gate=GateConfig(), num_categories=None)
        converted = convert(source, plain, config.blocks, verify=False).model
        return [freeze(converted, level) for level in levels]
    except DmnnError as error:
        raise CheckpointError(
            f"{file}: the given {type(source).__name__} cannot be converted as the source was: "
            f"{error}"
        ) from error


def _built(file: Path, described: Mapping[str, Any], state: State) -> nn.Module:
    arch, classes = described["arch"], described["num_classes"]
    if not arch or not zoo.is_zoo_name(arch):
        # A factory's name runs code; only names of the zoos may come from a file.
        named = f"names {arch!r}, which would run code of its own" if arch else "names none"
        raise ArgumentError(
            f"{file}: the source cannot be built by name (it {named}). Build it yourself, and "
            "give it: model=..."
        )
    if classes is not None and not any(classes in tensor.shape for tensor in state.values()):
        raise CheckpointError(
            f"{file} and the weights beside it do not belong together: no tensor has "
            f"{shown(classes)} classes; save it again."
        )
    return zoo.build(arch, num_classes=classes)


_KINDS: dict[str, tuple[type, ...]] = {
    "save_id": (str,),
    "arch": (str, type(None)),
    "num_classes": (int, type(None)),
    "networks": (list,),
    "confidence": (str, type(None)),
    "mean": (bool,),
    "conversion": (dict, type(None)),
    "fitted": (dict, type(None)),
}


def read_described(file: Path) -> dict[str, Any]:
    """Read the description of saved networks.

    Raises:
        CheckpointError: if it is missing, damaged, or something else.
    """
    try:
        described = parsed_json(text_of(file))
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be read ({error.strerror}); give a directory that save wrote."
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{file}: is truncated or not valid JSON ({error}); save it again."
        ) from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        got = described.get("format") if isinstance(described, dict) else described
        raise CheckpointError(
            f"{file}: has format {shown(got)}, this version reads {FORMAT}; use the version of "
            "dmnn-convert that wrote it."
        )
    for name, kinds in _KINDS.items():
        if name not in described or not isinstance(described[name], kinds):
            raise CheckpointError(
                f"{file}: its {name} is {shown(described.get(name))}, which save never "
                "writes; save it again."
            )
    if not all(isinstance(name, str) for name in described["networks"]):
        raise CheckpointError(f"{file}: names no networks; save it again.")
    return described
