"""Models by name: torchvision's, timm's, or from a factory of the user's own."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import ArgumentError, PretrainedError, UnknownArchitectureError

_TIMM = "timm:"


_OWN = "A network of your own is package.module:factory or path/to/file.py:factory."


def build(arch: str, *, num_classes: int | None = None, pretrained: bool = False) -> nn.Module:
    """Build a model by name, on the CPU.

    Args:
        arch: "resnet50" (any model of torchvision), "timm:mobilenetv2_100" (any of timm), or
            "package.module:factory" or "path/to/file.py:factory" (executes that code).
        num_classes: classes of the classifier; None for the model's own default.
        pretrained: whether to load the zoo's default weights, downloading them if need be.

    Raises:
        UnknownArchitectureError: for a name that neither zoo knows; lists close ones.
        ArgumentError: for a factory that cannot be found or called, or that returns no module,
            and for `pretrained` if the other arguments rule it out.
        PretrainedError: for weights that do not exist or cannot be fetched.

    Example:
        >>> net = zoo.build("resnet18", num_classes=10)
        >>> net.fc.out_features
        10
    """
    if num_classes is not None and (type(num_classes) is not int or num_classes < 1):
        raise ArgumentError(f"build(num_classes={num_classes!r}): give an int >= 1, or None.")
    if is_zoo_name(arch):
        own = _build_timm if arch.startswith(_TIMM) else _build_torchvision
        return own(arch, _head(num_classes), pretrained)
    if arch.endswith(".py"):
        raise UnknownArchitectureError(f"build({arch!r}): name the factory too. {_OWN}")
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
    from torchvision import models

    return [*models.list_models(module=models), *(_TIMM + name for name in timm.list_models())]


def is_zoo_name(arch: str) -> bool:
    """Return whether torchvision or timm knows the name; building it then runs no other code."""
    if not arch.startswith(_TIMM):
        from torchvision import models

        return arch in models.list_models()
    import timm

    name = arch.removeprefix(_TIMM)
    # timm ignores the tag behind the dot here, and fails on an unknown one only when it builds.
    return bool(timm.is_model(name)) and ("." not in name or timm.is_model_pretrained(name))


def _head(num_classes: int | None) -> dict[str, Any]:
    return {} if num_classes is None else {"num_classes": num_classes}


def _build_torchvision(arch: str, head: dict[str, Any], pretrained: bool) -> nn.Module:
    from torchvision import models

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
    if not timm.is_model_pretrained(name):  # timm may just log this and use random weights
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
    from torchvision import models

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
    if spec is None or spec.loader is None:
        raise ArgumentError(f"build('{file}:...'): Python cannot import this file.")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # leave no half-imported module
        raise
    return module
