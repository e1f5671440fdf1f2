"""The torch.fx tracer: modules that it enters, modules that it leaves whole, names of nodes."""

from __future__ import annotations

import functools
import operator
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

import numpy as np
from torch import Tensor, fx, nn

from ..nn import MultiPathBlock
from ..optional import loaded
from ..text import first_sentence
from .ambient import ambient, lost
from .arguments import IN_A_CONTAINER, Extra, bound, extra, hides_tensors, holds_tensors
from .exchange import Exchange, module_methods
from .holders import version_of
from .keys import below, is_made_here, names_of, target_name
from .leaves import LEAVES, OPENED, functions_left_whole
from .leftovers import Leftovers
from .lines import defined_at, running_line, with_line
from .makers import holders_overlooked, makers
from .own_layers import own_layer
from .proxies import TracedValue
from .questions import Unanswerable, check_asks_no_type, questions
from .randomness import Draws
from .replaced import REPLACED, own_forward
from .side_effects import Watch
from .sizes import Given, Sizes
from .vouching import vouched
from .wiring import nodes_of


class StructureTracer(fx.Tracer):
    """Trace into every module that can be traced, and note the module that issued each node.

    A module whose forward fails to trace, or draws random numbers in Python, becomes a leaf.

    Attributes:
        calls: for each module that was traced into, the constant arguments of each call.
        extra: for those with ``*args`` or ``**kwargs``, the values that the call gives these.
        closed: modules that could not be traced into -> why.
        unstable: modules whose forward does more than the graph shows -> what.
        versions: how often tensors that a forward makes had been written to when they were read.
        returned: for each module that was looked into, the values that each call gave.
    """

    def __init__(
        self,
        opened: frozenset[str] | None,
        whole: frozenset[str] = frozenset(),
        given: Given | None = None,
    ) -> None:
        super().__init__(autowrap_functions=functions_left_whole())
        self._autowrap_search += holders_overlooked()
        self.leaves = (MultiPathBlock, *loaded(*LEAVES))
        self.opened, self.whole = opened, whole
        self.calls: dict[str, list[dict[str, Any]]] = {}
        self.extra: dict[str, Extra] = {}
        self.closed: dict[str, str] = {}
        self.unstable: dict[str, str] = {}
        self.versions: dict[str, int] = {}
        self.returned: dict[str, list[list[fx.Node]]] = {}
        self.owners, self.surroundings = [""], [ambient()]
        self.asked: list[str] = []
        self.draws = Draws()
        self.sizes, self.used = Sizes(self, given), set[str]()
        self.seen: Counter[tuple[str, str, str]] = Counter()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self.surroundings = [ambient()]
        self.traced_func_name = own_forward(root) or "forward"
        self.watch, self.leftovers = Watch(root), Leftovers()
        known: dict[str, Any] = {}
        methods = module_methods(self, self._search, known)
        functions = {**makers(), **questions(self), **self.draws.functions(), **methods}
        try:
            with Exchange(functions) as self.exchange, self.draws:
                self.exchange.search(root.forward)
                check_asks_no_type(self, root.forward)
                graph = super().trace(root, concrete_args)
            known.clear()  # values that still live are held by the user's code
            self._note_side_effects(root, "")
        finally:
            self.watch.restore()
            del self.watch
        for path, reason in self.leftovers.reasons(self.calls):
            self.unstable.setdefault(path, reason)
        if self.asked:
            raise Unanswerable(self.asked[0])
        drawn = self.draws.reason()
        if drawn is not None:
            self.unstable[""] = drawn
        return graph

    def _search(self, m: nn.Module) -> None:
        """Give a forward's module the replaced functions, and those left whole."""
        patcher, scope = fx._symbolic_trace.CURRENT_PATCHER, getattr(m.forward, "__globals__", {})
        if patcher is not None:
            fx._symbolic_trace._autowrap_check(patcher, scope, self._autowrap_function_ids)
        self.exchange.search(m.forward)

    def _note_side_effects(self, m: nn.Module, path: str) -> None:
        changed = self.watch.changes(m)
        if changed:
            forward = f"its forward{defined_at(self.root.get_submodule(path).forward)}"
            self.unstable[path] = (
                f"{forward} leaves a side effect ({changed[0]}), which a new forward would not"
            )

    def path_of_module(self, mod: nn.Module) -> str:
        """Return a module's name; if it has several, the one that its caller uses.

        One activation may serve many blocks; each block has its own name for it.
        """
        names = self._names.get(id(mod), [])
        for path in reversed(self.owners):
            inside = [name for name in names if below(name, path)]
            if inside:
                return min(inside, key=lambda name: name.count("."))
        return super().path_of_module(mod)

    @functools.cached_property
    def _names(self) -> dict[int, list[str]]:
        return names_of(self.root)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if vouched(type(m)) or own_layer(m) is not None:
            return True
        if self.opened is not None:
            return module_qualified_name not in self.opened
        if module_qualified_name in self.whole or isinstance(m, self.leaves):
            return True
        return not isinstance(m, OPENED) and super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if self.sizes.computing or is_made_here(m, self._names):
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if own_forward(m) is None:
            self.closed[path] = REPLACED
        if path in self.closed or self.is_leaf_module(m, path):
            self._note_side_effects(m, self.owners[-1])  # such as a mode for this call only
            return self.create_proxy("call_module", path, args, kwargs)
        before, seen, asked = len(self.graph.nodes), self.seen.copy(), len(self.asked)
        drawn = len(self.draws.lines)
        try:
            result = self._open(m, path, forward, args, kwargs)
            if self.asked[asked:]:
                raise Unanswerable(self.asked[asked])
            reason = self.draws.reason(drawn)
        except Exception as error:
            reason = f"its forward cannot be traced ({first_sentence(error)})"
        del self.asked[asked:]
        del self.draws.lines[drawn:]
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
        check_asks_no_type(self, m.forward)
        arguments = bound(m, args, kwargs)
        constants = {n: v for n, v in arguments.items() if not holds_tensors(v)}
        self.calls.setdefault(path, []).append(constants)
        given = extra(m, args, kwargs)
        if given is not None:
            self.extra[path] = given
        if hides_tensors(constants):
            self.unstable.setdefault(path, IN_A_CONTAINER)
        self._note_surroundings()
        depth = len(self.owners)
        self._note_side_effects(m, self.owners[-1])
        self.owners.append(path)
        self.sizes.enter(path, arguments)
        self.surroundings.append(ambient())
        try:
            result = forward(*args, **kwargs)
            self.returned.setdefault(path, []).append(nodes_of(result))
            return result
        finally:
            del self.owners[depth:], self.surroundings[depth:]
            self.sizes.leave(depth)
            self._note_side_effects(m, path)

    def _forget(self, before: int, seen: Counter[tuple[str, str, str]]) -> None:
        for node in list(self.graph.nodes)[: before - 1 if before else None : -1]:
            self.graph.erase_node(node)
        self.seen = seen

    def create_node(self, kind: str, target: Any, *rest: Any, **options: Any) -> fx.Node:
        node = super().create_node(kind, target, *rest, **options)
        if kind not in ("placeholder", "output"):
            self._note_surroundings()
        like = (self.owners[-1], kind, target_name(target))
        if kind == "call_function" and target is operator.getitem and _is_argument(rest[0]):
            # Taken from a tuple that was passed in whole; outside, there is no such node.
            like = (self.owners[-1], kind, "argument")
        node.meta["key"] = (*like, self.seen[like])
        node.meta["line"] = "" if kind == "placeholder" else running_line()
        self.seen[like] += 1
        return node

    def _note_surroundings(self) -> None:
        reason = self.surroundings[-1].surrounding(ambient())
        if reason is not None:
            self.unstable[self.owners[-1]] = with_line(reason)

    def note_surroundings(self, used: str) -> None:
        """Note that the forward runs a part under something that no graph shows."""
        self.unstable[self.owners[-1]] = with_line(lost(used))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        value = TracedValue(node, self)
        self.leftovers.note(value)
        return value

    def ask(self, question: str, line: str | None = None) -> NoReturn:
        """Note a question that a trace cannot answer, for which its forward stays closed."""
        self.asked.append(with_line(question) if line is None else f"{question}{line}")
        raise Unanswerable(self.asked[-1])

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.sizes.computing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        known = self.sizes.answer(obj.node, "bool")
        if known is not None:
            return bool(known)
        self.ask("it branches on a value that only a run knows")

    def iter(self, obj: fx.Proxy) -> Any:
        length = self.sizes.answer(obj.node, "len")
        if length is not None:
            return iter([operator.getitem(obj, i) for i in range(length)])
        self.ask("it iterates over a value that only a run knows the length of")

    def returns_tensor(self, path: str) -> bool:
        """Return whether calling a module that was left whole is known to give one tensor."""
        module = self.root.get_submodule(path)
        if isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
            return False
        if getattr(module, "return_indices", False):
            return False
        if vouched(type(module)):
            return True
        known = isinstance(module, (*self.leaves, *OPENED))
        return known or super().is_leaf_module(module, path)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, np.generic):
            a = a.item()  # whose repr is no code by itself
        # torch.fx would return a plain dict in place of either of these.
        if isinstance(a, dict) and is_dataclass(a):
            values = {field.name: self.create_arg(getattr(a, field.name)) for field in fields(a)}
            return self.create_node("call_function", type(a), (), values)
        if type(a) is OrderedDict:
            items = [(key, self.create_arg(value)) for key, value in a.items()]
            return self.create_node("call_function", OrderedDict, (items,), {})
        arg = super().create_arg(a)
        if isinstance(a, Tensor) and isinstance(arg, fx.Node):
            self.versions.setdefault(str(arg.target), version_of(a))
        return arg

    def _proxy_placeholder(self, name: str, concrete_args: Any, *rest: Any) -> Any:
        result = super()._proxy_placeholder(name, concrete_args, *rest)
        if concrete_args is not None and name in concrete_args:
            for node in self.graph.nodes:
                if node.op == "placeholder" and str(node.target).rpartition("_")[0] == name:
                    node.meta["specialised"] = name, concrete_args[name]
        return result


def _is_argument(arguments: Any) -> bool:
    source, index = arguments
    return isinstance(source, fx.Node) and source.op == "placeholder" and isinstance(index, int)
