"""Give a module a new forward, written by a torch.fx graph, and let it stay what it was.

The module keeps its identity, class name, attributes, children and hooks: its class becomes a
subclass whose only news are `forward` and a way to be pickled. (A `torch.fx.GraphModule` would
lose whatever the graph does not mention, and its own state when it is copied.)
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

from torch import fx, nn


def give_forward(module: nn.Module, graph: fx.Graph) -> None:
    """Make `graph` the forward of `module`, in place; its names are the module's attributes."""
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
    base: type[nn.Module] = getattr(type(module), "_source_class", type(module))
    recipe = (base, source, tuple(modules.items()), tuple(objects.items()))
    module.__class__ = _generated_class(*recipe)  # type: ignore[arg-type]  # all hashable


@functools.cache
def _generated_class(
    base: type[nn.Module],
    source: str,
    modules: tuple[tuple[str, str], ...],
    objects: tuple[tuple[str, Any], ...],
) -> type[nn.Module]:
    scope: dict[str, Any] = {name: importlib.import_module(path) for name, path in modules}
    scope.update(objects)
    exec(compile(source, "<dmnn_convert>", "exec"), scope)
    members = {
        "forward": scope["forward"],
        "__reduce_ex__": _reduce,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_source_class": base,
        "_recipe": (base, source, modules, objects),
    }
    return type(base.__name__, (base,), members)


def _reduce(self: Any, protocol: int) -> tuple[Any, ...]:
    # A class made at run time cannot be found by name; its recipe can be carried along.
    state = object.__reduce_ex__(self, 2)[2]
    return (_revive, type(self)._recipe, state)


def _revive(*recipe: Any) -> nn.Module:
    cls = _generated_class(*recipe)
    return cls.__new__(cls)
