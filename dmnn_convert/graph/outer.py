"""Plain values that a forward reads outside its own module's attributes.

Numbers, flags, words and functions may be in dicts, lists and config objects that a module holds,
on classes, in globals, closures, default arguments and the environment. A trace sees them once.
Setting one raises no alarm, so a new forward checks in each call that the values mentioned in its
code are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConversionError
from .attributes import MISSING, Frozen, at_conversion, is_plain_value, mentioned, own_value
from .held_values import (
    DEPTH,
    FUNCTIONS,
    FunctionName,
    Look,
    OuterValue,
    Unguarded,
    as_plain,
    name_of,
)
from .libraries import is_library_name
from .reach import Place, Reached


def outer_values(
    module: nn.Module, inner: str = "", left: Mapping[str, nn.Module] | None = None
) -> Iterator[OuterValue]:
    """Yield what the forward of a module mentions, and something other than the module holds.

    Args:
        module: the module.
        inner: its path, as seen from the one whose forward is to read the values.
        left: where that module is not there any more, those that are, by path. What it holds can
            only be asked of its class, and of others that hold it, too.
    """
    for found, there in _mentioned(module, inner, left):
        if there or isinstance(found.value, Unguarded):
            yield found


def holds_alone(module: nn.Module, left: Mapping[str, nn.Module]) -> bool:
    """Return whether values that others may change could be found in a module only.

    Args:
        module: a module that would be gone.
        left: those that would be left, by path.
    """
    direct = {f".{name}" for name in vars(module)}
    found = _mentioned(module, "", left)
    return any(not there and value.place.path not in direct for value, there in found)


def _mentioned(
    module: nn.Module, inner: str, left: Mapping[str, nn.Module] | None
) -> Iterator[tuple[OuterValue, bool]]:
    """Yield what `outer_values` looks at, and whether its place is still there."""
    cls = type(module)
    if is_library_name(cls.__module__):
        return
    start = _place_of(inner)
    source = getattr(cls, "_source_class", cls)
    of_class = start.at(".__class__") if left is None else Place(source, "", cls.__name__)
    reached = Reached(module, start, of_class)
    for at, function in reached.methods.items():
        yield OuterValue(at, name_of(function)), True
    names = frozenset(reached.names)
    look = Look(names, reached.words, reached.asked, set(map(id, module.modules())))
    held = reached.asked & (vars(module).keys() | module._modules.keys() | set(dir(cls)))
    for name in sorted(name for name in names | held if not name.startswith("__")):
        place: Place | None = start.at(f".{name}")
        if left is not None:
            own = name in vars(module) or name in module._modules
            place = _elsewhere(vars(module).get(name), left) if own else of_class.at(f".{name}")
        found = _of_module(module, name, place or start.at(f".{name}"), look)
        yield from ((value, place is not None) for value in found)
    for at, value in reached.values:
        # A function that only a module which is gone has held cannot be asked any more.
        there = left is None or bool(at.holder)
        yield from ((each, there) for each in look.at(value, at, DEPTH + 1))


def _place_of(inner: str) -> Place:
    code = "".join(f"._modules[{part!r}]" for part in inner.split(".")) if inner else ""
    return Place("", code, f"self.{inner}" if inner else "self")


def _elsewhere(value: Any, left: Mapping[str, nn.Module]) -> Place | None:
    """Return where another module holds the same object, if one does."""
    if is_plain_value(value):
        return None
    places = (
        _place_of(p).at(f".{n}") for p, m in left.items() for n, v in vars(m).items() if v is value
    )
    return next(places, None)


def _of_module(module: nn.Module, name: str, place: Place, look: Look) -> Iterator[OuterValue]:
    """Yield the values under an attribute, but for plain ones of the module's own."""
    value, own = own_value(module, name), name in vars(module)
    child = module._modules.get(name)
    if isinstance(child, nn.ModuleList | nn.ModuleDict):
        yield OuterValue(place.at(".__len__()", f"the length of {place.told}"), len(child))
    elif own and isinstance(value, FUNCTIONS):
        yield OuterValue(place, name_of(value))
    elif isinstance(value, Iterator) or (not own and isinstance(value, Tensor)):
        yield from look.at(value, place, 1)
    elif not own and is_plain_value(value):
        yield OuterValue(place, value)
    elif not is_plain_value(value):
        yield from look.into(value, place, DEPTH)


def built_in(module: nn.Module, live_ones: Iterable[str]) -> Frozen:
    """Return the plain attributes that a module's forward mentions, but for those read live."""
    cls: Any = type(module)
    reached = Reached(module, _place_of(""), _place_of(""))
    names = (mentioned(cls) | reached.names | reached.asked) - {"training", *live_ones}
    values = [(name, own_value(module, name)) for name in sorted(names)]
    absent = [(n, MISSING) for n in sorted(reached.asked) if not hasattr(module, n)]
    return (*(pair for pair in values if is_plain_value(pair[1])), *absent)


def tensors_mentioned(module: nn.Module) -> Iterator[str]:
    """Yield the attributes, mentioned in a module's forward, that are tensors but not buffers."""
    names = Reached(module, _place_of(""), _place_of("")).names
    yield from (n for n in sorted(names) if isinstance(vars(module).get(n), Tensor))


# --- checking -----------------------------------------------------------------------------------


_COMPILES_NAMES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)
"""Whether torch.compile knows functions by their names, and guards them."""


def check_as_they_were(values: tuple[OuterValue, ...], *reads: Callable[[], Any]) -> None:
    """Check that values built into a forward are unchanged.

    Raises:
        ConversionError: if one has changed.
    """
    compiling = torch.compiler.is_compiling()
    for was, read in zip(values, reads, strict=True):
        is_function = isinstance(was.value, FunctionName)
        if is_function and compiling and not _COMPILES_NAMES:
            continue
        try:
            now = read()
        except (AttributeError, LookupError, TypeError):
            now = MISSING
        if is_function and compiling:  # which knows a function by its short name
            now = was.value if getattr(now, "__name__", "") == was.value.short else MISSING
        elif is_function:
            now = name_of(now) if isinstance(now, FUNCTIONS) else MISSING
        else:
            now = as_plain(now)
        if type(now) is not type(was.value) or (now != was.value and now == now):
            raise ConversionError(
                f"{was.place.told} is {now!r} now: {at_conversion(was.value)} is built into the "
                "converted forward. Put it back; or set it before, and convert the source."
            )
