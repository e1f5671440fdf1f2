"""The user's checkpoint file, read into the source model before conversion."""

from __future__ import annotations

import copy
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import safetensors.torch
import torch
from torch import nn

from ..errors import CheckpointError
from ..foreign import check_archive, check_tensors

_NESTED = ("state_dict", "model", "model_state_dict", "state_dict_ema")


_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's


_SIGNATURES = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file that it points to"),
    (b"<", "a web page"),
    (b"\x89HDF", "an HDF5 file, as Keras writes"),
    (b"\x80", "a truncated or damaged pickle"),
)


_SHOWN = 5


def load_source_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a checkpoint file into a model that is not converted yet.

    Reads `.safetensors`, or else a file of `torch.save`: a state dict, or one nested under
    "state_dict", "model", "model_state_dict" or "state_dict_ema". Prefixes that
    DistributedDataParallel and torch.compile leave on the keys are dropped. Only plain data is
    unpickled. If loading fails, the model stays as it was.

    Raises:
        CheckpointError: for a file that cannot be read, or whose weights do not fit the model, are
            not finite or not floating-point numbers.

    Example:
        >>> torch.save({"state_dict": source.state_dict()}, "best.pth")
        >>> net = Net()
        >>> load_source_checkpoint(net, "best.pth")
    """
    file = Path(path)
    state = _fit(_weights(_read(file), file), model, file)
    own = model.state_dict()
    check_tensors(state, own, file)
    before = copy.deepcopy(own)
    try:
        model.load_state_dict(state)
    except Exception as error:
        model.load_state_dict(before)  # torch copies all that fits before it complains
        raise CheckpointError(_mismatch(state, before, file) or f"{file}: {error}") from error


def _read(file: Path) -> object:
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "no such file"
        raise CheckpointError(f"{file}: {kind}; give a file of weights.")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        check_archive(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a foreign file can fail in any way
        raise CheckpointError(
            f"{file}: cannot be read: it is {_kind(file, error)}. Give a state dict that "
            "torch.save or safetensors wrote."
        ) from error


def _kind(file: Path, error: Exception) -> str:
    """Return what an unreadable file is, in place of torch's advice to trust it."""
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign:
        return (
            f"a pickle of Python objects ({foreign[1]}), which could run code when it is loaded. "
            "Save its state dict alone where it was made: torch.save(model.state_dict(), FILE)"
        )
    with file.open("rb") as stream:
        start = stream.read(64)
    if not start:
        return "empty"
    if start.startswith(b"PK"):
        return _kind_of_archive(file)
    if file.suffix == ".safetensors":
        return "a truncated, damaged or foreign safetensors file"
    if start[8:9] == b"{":
        return "a safetensors file under another suffix; rename it to .safetensors"
    known = (meaning for magic, meaning in _SIGNATURES if start.startswith(magic))
    return next(known, "not a file that torch.save wrote")


def _kind_of_archive(file: Path) -> str:
    if not zipfile.is_zipfile(file):
        return "a truncated PyTorch file"
    with zipfile.ZipFile(file) as whole:
        if any(name.endswith("/data.pkl") for name in whole.namelist()):
            return "a PyTorch file that is damaged, or holds more than plain tensors"
    return "a zip archive of something else"


def _weights(content: object, file: Path) -> Mapping[str, Any]:
    """Return the state dict in a checkpoint: itself, or the one under one of the usual names."""
    found = content
    if isinstance(content, Mapping):
        nested = (content[name] for name in _NESTED if isinstance(content.get(name), Mapping))
        found = next(nested, content)
    if _is_state(found):
        return found
    keys = f"the keys {_some(list(content))}" if isinstance(content, Mapping) else ""
    holds = keys or f"a {type(content).__name__}"
    raise CheckpointError(
        f"{file}: holds {holds}, but no state dict, neither by itself nor under one of "
        f"{', '.join(_NESTED)}. Save it with torch.save(model.state_dict(), FILE)."
    )


def _is_state(found: object) -> TypeGuard[Mapping[str, Any]]:
    return (
        isinstance(found, Mapping)
        and all(isinstance(key, str) for key in found)
        and any(isinstance(value, torch.Tensor) for value in found.values())
    )


def _fit(state: Mapping[str, Any], model: nn.Module, file: Path) -> dict[str, Any]:
    """Drop the wrappers' prefixes, and fill in entries that old or plain formats leave out."""
    own = model.state_dict()
    known = {*own, *(f"{name}." for name, _ in model.named_modules())}

    def bare(key: str) -> str:
        while key not in known and key.startswith(_WRAPPERS):
            key = key.partition(".")[2]
        return key

    clean: OrderedDict[str, Any] = OrderedDict((bare(key), value) for key, value in state.items())
    if len(clean) < len(state):
        raise CheckpointError(f"{file}: holds some weights twice, with and without a prefix.")
    for key in own:  # norms had no such counter before PyTorch 0.4.1
        if key.endswith("num_batches_tracked"):
            clean.setdefault(key, own[key])
    versions = getattr(state, "_metadata", None)
    # Modules read their format's version from here (torchvision's MNASNet insists on one).
    clean._metadata = (  # type: ignore[attr-defined]
        {bare(f"{name}.")[:-1]: value for name, value in versions.items()}
        if isinstance(versions, Mapping)
        else own._metadata  # type: ignore[attr-defined]
    )
    return clean


def _mismatch(state: Mapping[str, Any], own: Mapping[str, Any], file: Path) -> str:
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [(key, _shape(state[key]), _shape(own[key])) for key in own if key in state]
    shapes = [(key, theirs, ours) for key, theirs, ours in shapes if theirs != ours]
    parts = [
        f"missing {_some(missing)}" if missing else "",
        f"unexpected {_some(unexpected)}" if unexpected else "",
        *(f"{key}: file {theirs}, model {ours}" for key, theirs, ours in shapes[:_SHOWN]),
        f"and {len(shapes) - _SHOWN} more shapes" if len(shapes) > _SHOWN else "",
    ]
    found = "; ".join(part for part in parts if part)
    if not found:
        return ""
    remedy = "Build the architecture that the weights were saved from (--arch)."
    heads = {(theirs[:1], ours[:1]) for _, theirs, ours in shapes}
    only_heads = all(theirs and ours and theirs[1:] == ours[1:] for _, theirs, ours in shapes)
    if only_heads and len(heads) == 1 and not missing + unexpected:
        classes = shapes[0][1][0]
        remedy = f"Build the model with num_classes={classes} (--num-classes {classes})."
    return f"{file}: these weights do not fit the model: {found}. {remedy}"


def _shape(value: object) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _some(keys: list[Any]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(map(str, keys[:_SHOWN])) + more
