"""From a name to a model: torchvision's zoo, timm's, or a factory of the user's own."""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

import safetensors.torch
import torch
from torch import nn
from torchvision import models

from .errors import ArgumentError, CheckpointError, PretrainedError, UnknownArchitectureError

_TIMM = "timm:"
_OWN = "A network of your own is package.module:factory or path/to/file.py:factory."
_NESTED = ("state_dict", "model", "model_state_dict", "state_dict_ema")
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's
_SIGNATURES = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file that it points to"),
    (b"<", "a web page"),
    (b"\x89HDF", "an HDF5 file, as Keras writes"),
    (b"\x80", "a truncated or damaged pickle"),
)
_SHOWN = 5


def build(arch: str, *, num_classes: int | None = None, pretrained: bool = False) -> nn.Module:
    """Build the model that goes by a name, on the CPU.

    Args:
        arch: "resnet50" (any model of torchvision), "timm:mobilenetv2_100" (any of timm), or
            "package.module:factory" or "path/to/file.py:factory" (executes that code).
        num_classes: classes of the classifier; None for the model's own default.
        pretrained: whether to load the zoo's default weights, downloading them if need be.

    Raises:
        UnknownArchitectureError: for a name that neither zoo knows; lists close ones.
        ArgumentError: for a factory that cannot be found or called, or that returns no module,
            and for `pretrained` where it does not go together with the rest.
        PretrainedError: for weights that do not exist or cannot be fetched.
    """
    if num_classes is not None and (type(num_classes) is not int or num_classes < 1):
        raise ArgumentError(f"build(num_classes={num_classes!r}): give an int >= 1, or None.")
    if is_zoo_name(arch):
        own = _build_timm if arch.startswith(_TIMM) else _build_torchvision
        return own(arch, _head(num_classes), pretrained)
    if arch.startswith(_TIMM) or ":" not in arch:
        raise UnknownArchitectureError(_unknown(arch))
    if pretrained:
        raise ArgumentError(
            f"build({arch!r}, pretrained=True): only the zoos have weights of their own. "
            "Load yours with load_source_checkpoint (--checkpoint FILE)."
        )
    return _call_factory(arch, _head(num_classes))


def list_architectures() -> list[str]:
    """List the zoos' names: torchvision's classification models, then timm's as "timm:NAME"."""
    import timm

    return [*models.list_models(module=models), *(_TIMM + name for name in timm.list_models())]


def is_zoo_name(arch: str) -> bool:
    """Tell whether torchvision or timm knows the name, so that building it runs no other code."""
    if not arch.startswith(_TIMM):
        return arch in models.list_models()
    import timm

    name = arch.removeprefix(_TIMM)
    # timm ignores the tag behind the dot here, and fails on an unknown one only when it builds.
    return bool(timm.is_model(name)) and ("." not in name or timm.is_model_pretrained(name))


def load_source_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a checkpoint file into a model that is not converted yet.

    Reads `.safetensors`, and else what `torch.save` wrote: a state dict, or one nested under
    "state_dict", "model", "model_state_dict" or "state_dict_ema". Prefixes that
    DistributedDataParallel and torch.compile leave on the keys are dropped. Nothing but plain
    data is unpickled. The model stays as it was where this fails.

    Raises:
        CheckpointError: for a file that cannot be read, or whose weights do not fit the model.
    """
    file = Path(path)
    state = _fit(_weights(_read(file), file), model, file)
    before = copy.deepcopy(model.state_dict())
    try:
        model.load_state_dict(state)
    except Exception as error:
        model.load_state_dict(before)  # torch copies all that fits before it complains
        raise CheckpointError(_mismatch(state, before, file) or f"{file}: {error}") from error


def _head(num_classes: int | None) -> dict[str, Any]:
    return {} if num_classes is None else {"num_classes": num_classes}


def _build_torchvision(arch: str, head: dict[str, Any], pretrained: bool) -> nn.Module:
    options = dict(head)
    if "weights_backbone" in inspect.signature(models.get_model_builder(arch)).parameters:
        options["weights_backbone"] = None  # detectors download them by default
    if not pretrained:
        return _module(models.get_model(arch, **options), arch)
    default = models.get_model_weights(arch).DEFAULT
    classes = len(default.meta.get("categories", ()))
    if head.get("num_classes", classes) != classes:
        raise ArgumentError(
            f"build({arch!r}, num_classes={head['num_classes']}, pretrained=True): torchvision's "
            f"weights have {classes} classes. Leave num_classes out, or take a model of timm, "
            "which fits its pretrained models with a new classifier."
        )
    return _fetch(arch, lambda: models.get_model(arch, weights=default, **options))


def _build_timm(arch: str, head: dict[str, Any], pretrained: bool) -> nn.Module:
    import timm

    name = arch.removeprefix(_TIMM)
    if not pretrained:
        return _module(timm.create_model(name, **head), arch)
    if not timm.is_model_pretrained(name):  # timm may just log this, and go on with random weights
        raise PretrainedError(
            f"build({arch!r}, pretrained=True): timm has no weights for this model. "
            "Give your own with --checkpoint FILE."
        )
    return _fetch(arch, lambda: timm.create_model(name, pretrained=True, **head))


def _fetch(arch: str, create: Callable[[], Any]) -> nn.Module:
    try:
        return _module(create(), arch)
    except Exception as error:  # the zoos' download clients share no base class of their own
        raise PretrainedError(
            f"build({arch!r}, pretrained=True): the weights could not be fetched "
            f"({type(error).__name__}: {error}). Give a file with --checkpoint FILE, or run this "
            "once where there is a network."
        ) from error


def _module(model: object, arch: str) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    raise ArgumentError(
        f"build({arch!r}): the factory returned {type(model).__name__}; return a torch.nn.Module."
    )


def _close(name: str, known: Iterable[str], prefix: str = "") -> list[str]:
    return [prefix + match for match in difflib.get_close_matches(name, known, n=3)]


def _unknown(arch: str) -> str:
    import timm

    bare = arch.removeprefix(_TIMM).lower()
    close = _close(bare, models.list_models())
    of_timm = _close(bare, timm.list_models(), _TIMM)
    meant_timm = arch.startswith(_TIMM) or (bare not in close and _TIMM + bare in of_timm)
    close = of_timm + close if meant_timm else close + of_timm
    hint = f"Did you mean {', '.join(close)}? " if close else ""
    return f"build({arch!r}): neither torchvision nor timm knows this name. {hint}{_OWN}"


def _call_factory(arch: str, head: dict[str, Any]) -> nn.Module:
    factory = _find_factory(arch)
    try:
        inspect.signature(factory).bind(**head)
    except (TypeError, ValueError) as error:
        given = "num_classes= alone" if head else "no arguments"
        raise ArgumentError(
            f"build({arch!r}): the factory cannot be called with {given} ({error}). Let it accept "
            "that, with defaults for the rest" + (", or leave num_classes out." if head else ".")
        ) from error
    return _module(factory(**head), arch)


def _find_factory(arch: str) -> Callable[..., Any]:
    where, _, name = arch.rpartition(":")
    module = _import_file(Path(where)) if where.endswith(".py") else _import_module(where)
    try:
        factory = attrgetter(name)(module)
    except AttributeError as error:
        close = _close(name, vars(module))
        hint = f"Did you mean {', '.join(close)}? " if close else ""
        raise ArgumentError(f"build({arch!r}): {where} has no {name!r}. {hint}{_OWN}") from error
    if callable(factory) and not isinstance(factory, nn.Module):
        return factory  # type: ignore[no-any-return]
    raise ArgumentError(
        f"build({arch!r}): {name} is a {type(factory).__name__}; name a function or class that "
        "returns a new torch.nn.Module when it is called."
    )


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"build('{name}:...'): the module cannot be imported ({error}). Put its folder on "
            "PYTHONPATH, or give path/to/file.py:factory."
        ) from error


def _import_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise ArgumentError(f"build('{file}:...'): there is no such file in {Path.cwd()}.")
    # A name of its own, so that a user's resnet.py hides no module of that name.
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]
    name = f"_dmnn_convert_{digest}_{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # half a module is none
        raise
    return module


def _read(file: Path) -> object:
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "no such file"
        raise CheckpointError(f"{file}: {kind}; give a file of weights.")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can fail in any way at all
        raise CheckpointError(f"{file}: cannot be read: it is {_kind(file, error)}.") from error


def _kind(file: Path, error: Exception) -> str:
    """Say what an unreadable file is, in place of torch's advice to trust it."""
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
        whole = zipfile.is_zipfile(file)
        return "a zip archive of something else" if whole else "a truncated PyTorch file"
    if file.suffix == ".safetensors":
        return "a truncated, damaged or foreign safetensors file"
    if start[8:9] == b"{":
        return "a safetensors file under another suffix; rename it to .safetensors"
    known = (meaning for magic, meaning in _SIGNATURES if start.startswith(magic))
    return next(known, "not a file that torch.save wrote")


def _weights(content: object, file: Path) -> Mapping[str, Any]:
    """Return the state dict in a checkpoint: itself, or what lies under one of the usual names."""
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
    """Drop the wrappers' prefixes, and fill in what old or plain formats leave out."""
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
        if versions is not None
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
