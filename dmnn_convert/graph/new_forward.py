"""Modules whose forward is replaced by generated code, keeping their identity and state.

The module keeps its class name, attributes, children and hooks: its class becomes a subclass that
adds only `forward` and a way to be pickled. (A `torch.fx.GraphModule` would lose whatever the graph
does not mention, and its own state when it is copied.)
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

from torch import fx, nn

from .attributes import Frozen, check_not_built_in
from .foreign_saving import save_or_refuse, saves_itself
from .held_values import OuterValue
from .outer import check_as_they_were
from .reach import Place


def give_forward(
    module: nn.Module,
    graph: fx.Graph,
    frozen: Frozen = (),
    outer: tuple[OuterValue, ...] = (),
) -> None:
    """Make `graph` the forward of `module`, in place; its names are the module's attributes.

    Args:
        module: gets the forward, also in place of one on the instance.
        graph: the forward.
        frozen: attributes whose values are built into the graph; setting one is an error.
        outer: values outside the module that are built into the graph; each call checks them.
    """
    vars(module).pop("forward", None)
    if isinstance(module, fx.GraphModule):
        module.graph = graph
        module.recompile()
        return
    code = graph.python_code("self")
    source = code.src[code.src.index("def forward(") :]  # without marks for another trace
    used = compile(source, "<dmnn_convert>", "exec").co_consts
    names = {name for c in used if hasattr(c, "co_names") for name in c.co_names}
    values = {name: value for name, value in code.globals.items() if name in names}
    modules = {name: v.__name__ for name, v in values.items() if isinstance(v, ModuleType)}
    objects = {name: v for name, v in values.items() if name not in modules}
    if outer:
        source = _checking(source, outer)
        holders = {_alias(v.place): v.place.holder for v in outer if v.place.holder}
        modules |= {name: holder for name, holder in holders.items() if isinstance(holder, str)}
        objects |= {name: holder for name, holder in holders.items() if name not in modules}
        objects |= {"check_as_they_were": check_as_they_were, "outer_values": outer}
    recipe = (_base(module), source, tuple(modules.items()), tuple(objects.items()), frozen)
    module.__class__ = _generated_class(*recipe)


def _checking(source: str, outer: tuple[OuterValue, ...]) -> str:
    """Return the code of a forward that begins by checking values."""
    head, _, body = source.partition("\n")
    read = ", ".join(f"lambda: {_alias(value.place)}{value.place.path}" for value in outer)
    return f"{head}\n    check_as_they_were(outer_values, {read})\n{body}"


def _alias(place: Place) -> str:
    if isinstance(place.holder, type):
        return f"class_{place.holder.__name__}_{id(place.holder)}"
    return f"globals_of_{place.holder.replace('.', '_')}" if place.holder else "self"


def freeze_attributes(module: nn.Module, frozen: Frozen) -> None:
    """Make it an error to set attributes that are built into another module's forward."""
    if isinstance(module, fx.GraphModule) or not frozen:
        return
    _, *forward, own = getattr(type(module), "_recipe", (None, "", (), (), ()))
    recipe = (_base(module), *forward, tuple(sorted({**dict(own), **dict(frozen)}.items())))
    module.__class__ = _generated_class(*recipe)


def guard_saving(model: nn.Module) -> None:
    """Make `save_pretrained` an error on a converted model and its parts, in place."""
    for module in model.modules():
        if saves_itself(type(module)) and not isinstance(module, fx.GraphModule):
            recipe = getattr(type(module), "_recipe", (type(module), "", (), (), ()))
            module.__class__ = _generated_class(*recipe)


def _base(module: nn.Module) -> type[nn.Module]:
    return getattr(type(module), "_source_class", type(module))


def _generated_class(*recipe: Any) -> type[nn.Module]:
    return _made(repr(recipe[3:]), *recipe)  # 1, 1.0 and True are one key by themselves


@functools.cache
def _made(
    spelled: str,
    base: type[nn.Module],
    source: str,
    modules: tuple[tuple[str, str], ...],
    objects: tuple[tuple[str, Any], ...],
    frozen: Frozen,
) -> type[nn.Module]:
    scope: dict[str, Any] = {name: importlib.import_module(path) for name, path in modules}
    scope.update(objects)
    exec(compile(source, "<dmnn_convert>", "exec"), scope)
    forward = {"forward": scope["forward"]} if source else {}
    members = {
        **forward,
        **({"__setattr__": _guarded(base, dict(frozen))} if frozen else {}),
        **({"save_pretrained": save_or_refuse(base)} if saves_itself(base) else {}),
        "__reduce_ex__": _reduce,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_source_class": base,
        "_recipe": (base, source, modules, objects, frozen),
    }
    return type(base.__name__, (base,), members)


def _guarded(base: type[nn.Module], frozen: dict[str, Any]) -> Any:
    def __setattr__(self: nn.Module, name: str, value: Any) -> None:
        check_not_built_in(self, name, value, frozen)
        base.__setattr__(self, name, value)

    return __setattr__


def _reduce(self: Any, protocol: int) -> tuple[Any, ...]:
    # A class made at run time cannot be found by name; its recipe can be carried along.
    state = object.__reduce_ex__(self, 2)[2]
    return (_revive, type(self)._recipe, state)


def _revive(*recipe: Any) -> nn.Module:
    cls = _generated_class(*recipe)
    return cls.__new__(cls)
