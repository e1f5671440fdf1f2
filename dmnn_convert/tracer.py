"""The torch.fx tracer: what it looks into, what it leaves whole, and how it names nodes."""

from __future__ import annotations

import functools
import operator
import random
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

from .arguments import Extra, bound, extra
from .block import MultiPathBlock

Key = tuple[str, str, str, int]
"""(owner, op, target, how many of its like came before): names a node across traces."""


class StructureTracer(fx.Tracer):
    """Trace into every module that can be looked into, and note who issued each node.

    A module whose forward fails to trace, or draws random numbers in Python, becomes a leaf.

    Attributes:
        calls: for each module that was looked into, the constant arguments of each call.
        extra: for those with ``*args`` or ``**kwargs``, what the call hands to these.
        closed: modules that could not be looked into -> why.
        unstable: modules whose forward does more than the graph shows -> what.
    """

    def __init__(self, opened: frozenset[str] | None, whole: frozenset[str] = frozenset()) -> None:
        timm = sys.modules.get("timm.layers")
        functions = timm.get_notrace_functions() if timm else ()
        super().__init__(autowrap_functions=tuple(f for f in functions if callable(f)))
        self.leaves = _leaf_types(timm)
        self.opened, self.whole = opened, whole
        self.calls: dict[str, list[dict[str, Any]]] = {}
        self.extra: dict[str, Extra] = {}
        self.closed: dict[str, str] = {}
        self.unstable: dict[str, str] = {}
        self.owners = [""]
        self.seen: Counter[tuple[str, str, str]] = Counter()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        before = _marks(root)
        with _preserved_randomness() as drawn:
            graph = super().trace(root, concrete_args)
        self._note_side_effects(root, "", before)
        if drawn():
            self.unstable[""] = "its forward draws random numbers in Python"
        return graph

    def _note_side_effects(self, m: nn.Module, path: str, before: dict[str, Any]) -> None:
        after = _marks(m)
        changed = [name for name in after if after[name] != before.get(name)]
        if changed:
            self.unstable[path] = (
                f"its forward leaves a side effect on the module ({changed[0]}), which a new "
                "forward would not"
            )

    def path_of_module(self, mod: nn.Module) -> str:
        """Return the name of a module, of several the one by which its caller has it.

        One activation may serve many blocks; seen from inside, each has its own.
        """
        names = self._names.get(id(mod), [])
        for path in reversed(self.owners):
            below = [name for name in names if not path or name.startswith(f"{path}.")]
            if below:
                return min(below, key=lambda name: name.count("."))
        return super().path_of_module(mod)

    @functools.cached_property
    def _names(self) -> dict[int, list[str]]:
        return names_of(self.root)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self.opened is not None:
            return module_qualified_name not in self.opened
        whole = module_qualified_name in self.whole or isinstance(m, self.leaves)
        return whole or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        path = self.path_of_module(m)
        if path in self.closed or self.is_leaf_module(m, path):
            return self.create_proxy("call_module", path, args, kwargs)
        before, seen = len(self.graph.nodes), self.seen.copy()
        try:
            with _preserved_randomness() as drawn:
                result = self._open(m, path, forward, args, kwargs)
            reason = "its forward draws random numbers in Python" if drawn() else None
        except Exception as error:
            reason = f"its forward cannot be traced ({first_line(error)})"
        if reason is None:
            return result
        self._forget(before, seen)
        self.closed[path] = reason
        return self.create_proxy("call_module", path, args, kwargs)

    def _open(
        self,
        m: nn.Module,
        path: str,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        constants = {n: v for n, v in bound(m, args, kwargs).items() if not _holds_proxies(v)}
        self.calls.setdefault(path, []).append(constants)
        given = extra(m, args, kwargs)
        if given is not None:
            self.extra[path] = given
        if any(isinstance(value, fx.Proxy) for value in tree_leaves(constants)):
            self.unstable[path] = "it is called with tensors in a list, tuple or dict"
        depth = len(self.owners)
        self.owners.append(path)
        before = _marks(m)
        try:
            return forward(*args, **kwargs)
        finally:
            del self.owners[depth:]
            self._note_side_effects(m, path, before)

    def _forget(self, before: int, seen: Counter[tuple[str, str, str]]) -> None:
        for node in list(self.graph.nodes)[: before - 1 if before else None : -1]:
            self.graph.erase_node(node)
        self.seen = seen

    def create_node(self, kind: str, target: Any, *rest: Any, **options: Any) -> fx.Node:
        node = super().create_node(kind, target, *rest, **options)
        like = (self.owners[-1], kind, _target_name(target))
        if kind == "call_function" and target is operator.getitem and _is_argument(rest[0]):
            # Taken out of a tuple that came in as one; seen from outside there is no such node.
            like = (self.owners[-1], kind, "argument")
        node.meta["key"] = (*like, self.seen[like])
        self.seen[like] += 1
        return node

    def create_arg(self, a: Any) -> Any:
        # torch.fx would return a plain dict in the place of either of these.
        if isinstance(a, dict) and is_dataclass(a):
            values = {field.name: self.create_arg(getattr(a, field.name)) for field in fields(a)}
            return self.create_node("call_function", type(a), (), values)
        if type(a) is OrderedDict:
            items = [(key, self.create_arg(value)) for key, value in a.items()]
            return self.create_node("call_function", OrderedDict, (items,), {})
        return super().create_arg(a)

    def _proxy_placeholder(self, name: str, concrete_args: Any, *rest: Any) -> Any:
        result = super()._proxy_placeholder(name, concrete_args, *rest)
        if concrete_args is not None and name in concrete_args:
            for node in self.graph.nodes:
                if node.op == "placeholder" and str(node.target).rpartition("_")[0] == name:
                    node.meta["specialised"] = name
        return result


def names_of(root: nn.Module) -> dict[int, list[str]]:
    """Return all names of each module of `root`, by its id."""
    names: dict[int, list[str]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return names


def _marks(m: nn.Module) -> dict[str, Any]:
    """Return what changes when a forward stores something on its module or its buffers."""
    marks: dict[str, Any] = {
        name: (id(value), len(value) if isinstance(value, list | dict | set) else 0)
        for name, value in vars(m).items()
        if not names_constant(name)
    }
    marks.update({name: (id(b), b._version) for name, b in m.named_buffers()})
    return marks


def _leaf_types(timm: Any) -> tuple[type, ...]:
    # Per-image randomness has to stay in its module: opened, its modes take different paths.
    leaves: list[type] = [StochasticDepth, FrozenBatchNorm2d, MultiPathBlock]
    if timm:
        # Of what timm holds untraceable, the rest is tried, and left whole where that fails.
        leaves += [getattr(timm, name) for name in _TIMM_LEAVES if hasattr(timm, name)]
    return tuple(leaves)


_TIMM_LEAVES = (
    *("DropPath", "BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNormAct2d", "InplaceAbn"),
    *("Conv2dSame", "StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame"),
    *("AvgPool2dSame", "MaxPool2dSame", "CondConv2d", "BlurPool2d"),
)


def _is_argument(arguments: Any) -> bool:
    source, index = arguments
    return isinstance(source, fx.Node) and source.op == "placeholder" and type(index) is int


CONSTANT = "_tensor_constant"
"""How torch.fx begins the names of tensors that a forward makes."""


def names_constant(name: str) -> bool:
    """Return whether torch.fx gave this name to a tensor that a forward made."""
    return name.startswith(CONSTANT)


def _target_name(target: Any) -> str:
    if isinstance(target, str):
        # The number depends on what else was traced, and says nothing.
        return CONSTANT if names_constant(target) else target
    return str(getattr(target, "__name__", repr(target)))


def first_line(error: BaseException) -> str:
    """Return the first sentence of an error's message, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].rstrip(".") if lines else type(error).__name__


def _holds_proxies(value: Any) -> bool:
    found: list[Any] = []
    fx.node.map_aggregate(value, lambda part: found.append(isinstance(part, fx.Proxy)))
    return any(found)


class _preserved_randomness:
    """Put the random generators back at exit; calling the value says whether any was used."""

    def __enter__(self) -> Callable[[], bool]:
        self.torch, self.python = torch.get_rng_state(), random.getstate()
        numpy = sys.modules.get("numpy")
        self.numpy: Any = numpy.random if numpy else None
        self.numpy_state: Any = self.numpy.get_state() if self.numpy else None
        self.drawn = False
        return lambda: self.drawn

    def __exit__(self, *exc: object) -> None:
        self.drawn = not torch.equal(self.torch, torch.get_rng_state()) or (
            self.python != random.getstate()
        )
        if self.drawn:
            torch.set_rng_state(self.torch)
            random.setstate(self.python)
        if self.numpy:
            now = self.numpy.get_state()
            moved = now[2] != self.numpy_state[2] or (now[1] != self.numpy_state[1]).any()
            if moved:
                self.drawn = True
                self.numpy.set_state(self.numpy_state)
