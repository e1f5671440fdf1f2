"""Guards of values that are built into a new forward: on modules inside, and elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from ..graph import (
    TAKEN,
    TENSOR,
    OuterValue,
    Unguarded,
    built_in,
    defined_at,
    freeze_attributes,
    holds_alone,
    joined,
    outer_values,
    tensors_mentioned,
)


def reason_against(
    module: nn.Module,
    copied: nn.Module,
    called: Collection[str],
    outer: Collection[OuterValue],
    read: Collection[str],
) -> str | None:
    """Return why a module must not get a new forward: what it reads could not be guarded.

    Args:
        module: is about to get it; layers that a block took are gone from it.
        copied: the same before.
        called: the modules inside whose forwards the new one runs.
        outer: the values, held elsewhere, that these have read.
        read: tensors and modules that the new forward reads by name, or did before.
    """
    unguarded = [(value.place.told, value.value) for value in outer]
    for path in sorted({*called, ""}):
        names = (joined(path, name) for name in tensors_mentioned(copied.get_submodule(path)))
        unguarded += [(f"self.{name}", TENSOR) for name in names if name not in read]
    for told, why in unguarded:
        if isinstance(why, Unguarded):
            return f"its forward{defined_at(type(module).forward)} reads {told}, {why}"
    return None


def values_from_elsewhere(
    module: nn.Module, copied: nn.Module, called: Collection[str]
) -> tuple[OuterValue, ...]:
    """Return the values, held elsewhere, that the forwards in one new forward have read.

    Args:
        module: gets the new forward; layers that a block took are gone from it.
        copied: the same before.
        called: the modules inside whose forwards the new one runs.
    """
    paths = {name for name, _ in module.named_modules()}
    there, gone = sorted({*called, ""} & paths), sorted({*called} - paths)
    outer = [v for path in there for v in outer_values(module.get_submodule(path), path)]
    left = {path: copied.get_submodule(path) for path in there}
    for path in gone:
        outer += outer_values(copied.get_submodule(path), path, left)
    return tuple(dict.fromkeys(outer))


def keep_holders(
    module: nn.Module,
    copied: nn.Module,
    called: Collection[str],
    before: Mapping[str, nn.Module],
) -> None:
    """Put back modules, now empty, that alone hold something that their forwards have read.

    A value in the closure of a function that such a module holds may change; a check has to find
    the function.

    Args:
        module: gets the new forward; layers that a block took are gone from it.
        copied: the same before.
        called: the modules inside whose forwards the new one runs.
        before: the modules inside, by path, before.
    """
    there = {name for name, _ in module.named_modules()}
    left = {path: copied.get_submodule(path) for path in sorted({*called, ""} & there)}
    for path in sorted({*called} - there):
        if holds_alone(copied.get_submodule(path), left):
            parts = path.split(".")
            for i in range(len(parts)):
                holder = before[".".join(parts[:i])]
                holder._modules.setdefault(parts[i], before[".".join(parts[: i + 1])])


def freeze_inside(
    module: nn.Module,
    copied: nn.Module,
    called: Collection[str],
    live: set[str],
    decided: Collection[str],
    taken: Collection[str],
) -> None:
    """Make it an error to set an attribute, of a module inside, that is built in.

    Args:
        module: gets the new forward; layers that a block took are gone from it.
        copied: the same before.
        called: the modules inside whose forwards the new one runs.
        live: attributes that it reads in each call.
        decided: other attributes that it has built in.
        taken: layers and tensors that are not there any more.
    """
    paths = {name for name, _ in module.named_modules()}
    for path in sorted({*called} & paths):
        own = {name.removeprefix(f"{path}.") for name in live if name.startswith(f"{path}.")}
        frozen = built_in(copied.get_submodule(path), own)
        freeze_attributes(module.get_submodule(path), frozen)
    for name in decided:
        path, _, attribute = name.rpartition(".")
        if path and path not in called and path in paths:
            value = vars(copied.get_submodule(path)).get(attribute)
            freeze_attributes(module.get_submodule(path), ((attribute, value),))
    for name in taken:
        path, _, attribute = name.rpartition(".")
        if path and path in paths:
            freeze_attributes(module.get_submodule(path), ((attribute, TAKEN),))
