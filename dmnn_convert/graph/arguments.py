"""The arguments of calls and of traced forwards, by the names that callers use."""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ..errors import ArgumentError
from .attributes import names_in
from .holders import attributes_of, contents

Parameter = inspect.Parameter

IN_A_CONTAINER = "it is called with tensors in a list, tuple, dict or other object"
"""Why a forward cannot be rewritten by itself, though the graph shows all that it does."""


class Extra(NamedTuple):
    """The arguments of one call beyond a forward's named parameters, by the names given here."""

    positional: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()


def bound(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of a module's forward, and the defaults, by name."""
    signature = inspect.signature(m.forward)
    found = signature.bind(*args, **kwargs)
    found.apply_defaults()
    values: dict[str, Any] = {}
    for name, value in found.arguments.items():
        kind = signature.parameters[name].kind
        if kind is Parameter.VAR_POSITIONAL:
            values |= {f"{name}_{i}": part for i, part in enumerate(value)}
        elif kind is Parameter.VAR_KEYWORD:
            values |= value
        else:
            values[name] = value
    return values


def extra(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Extra | None:
    """Return a call's ``*args`` and ``**kwargs``; None if the forward has neither."""
    if not takes_more(m):
        return None
    parameters = inspect.signature(m.forward).parameters.values()
    named = {p.name for p in parameters if p.kind not in _MORE}
    others = [name for name in bound(m, args, kwargs) if name not in named]
    return Extra(
        tuple(name for name in others if name not in kwargs),
        tuple(name for name in others if name in kwargs),
    )


def takes_more(m: nn.Module) -> bool:
    """Return whether a module's forward has ``*args`` or ``**kwargs``."""
    return any(p.kind in _MORE for p in inspect.signature(m.forward).parameters.values())


_LEADING = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


_MORE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


@contextmanager
def spelled_out(m: nn.Module, given: Extra | None, constants: Mapping[str, Any]) -> Iterator[None]:
    """Give a module, temporarily, a forward whose parameters are those of one call, by name.

    torch.fx makes a single value of ``**kwargs``, which cannot be passed on to calls inside.

    Args:
        m: a module that nothing else uses.
        given: replacements of ``*args`` and ``**kwargs``; None changes nothing.
        constants: the call's arguments that are not tensors; the defaults of keywords.
    """
    if given is None:
        yield
        return
    base = type(m)
    parameters = [*inspect.signature(base.forward).parameters.values()][1:]
    heads = [p for p in parameters if p.kind in _LEADING]
    named = [p for p in parameters if p.kind is Parameter.KEYWORD_ONLY]
    scope: dict[str, Any] = {"source": base.forward}
    header, passed = ["self"], ["self"]

    def declare(name: str, default: Any, keyword: bool) -> None:
        if default is Parameter.empty:
            header.append(name)
        else:
            scope[f"default_{name}"] = default
            header.append(f"{name}=default_{name}")
        passed.append(f"{name}={name}" if keyword else name)

    for p in heads:
        declare(p.name, Parameter.empty if given.positional else p.default, keyword=False)
    for name in given.positional:
        declare(name, Parameter.empty, keyword=False)
    for p in named:
        declare(p.name, None if p.default is Parameter.empty else p.default, keyword=True)
    for name in given.keywords:
        declare(name, constants.get(name), keyword=True)
    code = f"def forward({', '.join(header)}):\n    return source({', '.join(passed)})\n"
    exec(code, scope)
    m.__class__ = type(base.__name__, (base,), {"forward": scope["forward"]})
    try:
        yield
    finally:
        m.__class__ = base


def restore_arguments(graph: fx.Graph) -> None:
    """Restore the names and the form that callers use to a trace's arguments and output."""
    # torch.fx renames a fixed argument `flag` to `flag_1`; callers still say flag=.
    # It also takes fixed lists apart, and checks each part; nothing else reads them.
    _restore_output(graph)
    fixed: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        node.type = None
        if node.op == "placeholder" and "specialised" in node.meta:
            node.target, _ = node.meta["specialised"]
            fixed.setdefault(node.target, []).append(node)
    for parts in fixed.values():
        _erase_readers(graph, parts)
        for node in parts[1:]:
            graph.erase_node(node)
    arguments = [node for node in graph.nodes if node.op == "placeholder"]
    for argument, *_ in fixed.values():
        name, value = argument.meta["specialised"]
        if is_plain(value):
            with graph.inserting_after(arguments[-1]):
                check = graph.call_function(expect, (argument, value, name))
            check.meta = {"key": ("", check.op, f"expect {name}", 0), "line": ""}


def is_plain(value: Any) -> bool:
    """Return whether a value is a number, a word or the like, or consists only of these."""
    if type(value) in (tuple, list, dict):
        return all(map(is_plain, value.values() if type(value) is dict else value))
    return type(value) in (bool, int, float, str, type(None), torch.dtype)


def expect(given: Any, value: Any, name: str) -> None:
    """Check that an argument has the value that a forward was converted with.

    Raises:
        ArgumentError: if it has another.
    """
    if isinstance(given, fx.Proxy):
        torch._assert(given == value, f"{name}={value!r} is built in")
    elif not _is_equal(given, value):
        shown = repr(given) if is_plain(given) else f"a {type(given).__name__}"
        raise ArgumentError(
            f"{name}={shown}: the converted forward was traced with {name}={value!r}, which is "
            "built in. Call the source model, or let that be the default and convert again."
        )


def _is_equal(given: Any, value: Any) -> bool:
    return is_plain(given) and (given is None) == (value is None) and bool(given == value)


def _restore_output(graph: fx.Graph) -> None:
    """Undo torch.fx's change of the output if an argument is fixed to a list."""
    info = getattr(graph._codegen, "pytree_info", None)
    if info is None:
        return
    graph.set_codegen(fx.graph.CodeGen())
    output = graph.output_node()
    output.args = (pytree.tree_unflatten(output.args[0], info.out_spec),)  # type: ignore[arg-type]


def _erase_readers(graph: fx.Graph, nodes: list[fx.Node]) -> None:
    for node in nodes:
        for user in list(node.users):
            _erase_readers(graph, [user])
            graph.erase_node(user)


def holds_tensors(value: Any) -> bool:
    """Return whether a value is a tensor or a proxy of a trace, or holds one.

    A tensor that the model has, or makes of what it has, moves with it: none is a constant.
    """
    found: list[Any] = []
    kinds = fx.Proxy, torch.Tensor
    fx.node.map_aggregate(value, lambda part: found.append(isinstance(part, kinds)))
    return any(found)


def hides_tensors(value: Any, depth: int = 5) -> bool:
    """Return whether a value is or holds a tensor, in an object or a function's closure too.

    torch.fx looks into tuples, lists and dicts. Other objects are passed on as they are, so that a
    graph would keep the tensors that they held in the trace.
    """
    if isinstance(value, fx.Proxy | torch.Tensor):
        return True
    if depth == 0 or isinstance(value, nn.Module | type | types.ModuleType):
        return False
    return any(hides_tensors(part, depth - 1) for part in _parts(value))


def _parts(value: Any) -> list[Any]:
    """Return what a container, an object or a function with a closure holds."""
    if isinstance(value, str | bytes):
        return []
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return list(value)
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType | types.BuiltinMethodType | types.MethodWrapperType):
        return [value.__self__, getattr(value, "__func__", None)]
    if isinstance(value, types.FunctionType):
        held = [part for cell in value.__closure__ or () for part in contents(cell).values()]
        return [*held, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return list(attributes_of(value).values())


_WRITERS = frozenset(
    ("append", "extend", "insert", "pop", "remove", "clear", "update", "setdefault", "popitem")
)


def outlasts_calls(root: nn.Module, default: Any) -> bool:
    """Return whether a default may carry values over from one call to the next."""
    if not isinstance(default, list | dict):
        return False
    code = getattr(inspect.unwrap(type(root).forward), "__code__", None)
    if code is None or not default:
        return True  # an empty container is there to be filled
    stores = any(step.opname == "STORE_SUBSCR" for step in dis.get_instructions(code))
    return stores or not _WRITERS.isdisjoint(names_in(code))
