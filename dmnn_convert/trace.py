"""torch.fx: a model as one graph whose nodes know which module issued them.

Two traces are taken, one in evaluation and one in training mode, and merged: where they differ
only by ``False`` against ``True`` (functional dropout with ``training=self.training``) the
constant becomes `TRAINING`, which generated code reads as ``self.training``. Where the modes take
different paths altogether, the module is listed in `Trace.unstable`, and nothing of it is
rewritten. The traced object is a skeleton (a copy that shares the parameters), so that a
``forward`` with side effects leaves nothing on the user's model.
"""

from __future__ import annotations

import copy
import inspect
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torchvision.ops import StochasticDepth

from .errors import ConversionError

Key = tuple[str, str, str, int]
"""(owner, op, target, how many of its like came before): names a node across traces."""


class _TrainingFlag:
    """Stands for ``self.training`` in a graph; generated code prints its repr."""

    def __repr__(self) -> str:
        return "self.training"

    def __deepcopy__(self, memo: dict[int, Any]) -> _TrainingFlag:
        return self

    def __reduce__(self) -> str:
        return "TRAINING"


TRAINING = _TrainingFlag()


@dataclass
class Trace:
    """A model as a graph.

    Attributes:
        root: the skeleton that was traced; parameters are the model's own.
        graph: in evaluation mode, with `TRAINING` where the modes differ by that flag.
        calls: for each module that was looked into, the constant arguments of each call.
        unstable: modules whose forward cannot be rewritten -> why.
        closed: modules that could not be looked into -> why.
        hooked: modules that carry hooks (the skeleton carries none).
        tied: id of each parameter that has several names -> its names.
        was_training: the mode that the model was in.
    """

    root: nn.Module
    graph: fx.Graph
    calls: dict[str, list[dict[str, Any]]]
    unstable: dict[str, str] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)
    hooked: frozenset[str] = frozenset()
    tied: dict[int, list[str]] = field(default_factory=dict)
    was_training: bool = True

    def depends_on_mode(self, path: str) -> bool:
        """Return whether anything that the module at `path` runs differs by `TRAINING`."""
        inside = (n for n in self.graph.nodes if not path or f"{owner(n)}.".startswith(f"{path}."))
        return any(TRAINING in _leaves((n.args, n.kwargs)) for n in inside)

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a ``call_module`` node calls, else None."""
        if node.op != "call_module":
            return None
        return self.root.get_submodule(str(node.target))


def _leaves(arguments: Any) -> list[Any]:
    found: list[Any] = []
    fx.node.map_aggregate(arguments, found.append)
    return found


def owner(node: fx.Node) -> str:
    """Return the path of the module whose forward issued the node ("" for the root)."""
    return str(node.meta["key"][0])


def skeleton(model: nn.Module, device: str | None = None) -> nn.Module:
    """Copy the modules but share the parameters, without hooks.

    Args:
        model: what to copy.
        device: where to put empty tensors instead, "meta" for shapes only.

    Raises:
        ConversionError: if the model cannot be copied.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    if device is not None:
        memo = {
            key: nn.Parameter(p.detach().to(device), p.requires_grad) for key, p in memo.items()
        }
        memo |= {id(buffer): buffer.detach().to(device) for buffer in model.buffers()}
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise ConversionError(
            f"{type(model).__name__} cannot be copied ({error}); a model that copy.deepcopy "
            "refuses cannot be converted."
        ) from error
    for module in copied.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    return copied


def trace(
    model: nn.Module,
    opened: frozenset[str] | None = None,
    constants: dict[str, Any] | None = None,
) -> Trace:
    """Trace a model in both modes and merge the graphs.

    Args:
        model: any module; it is not touched.
        opened: look only into these sub-modules; None looks into all that can be.
        constants: arguments of the model's forward to fix; None fixes those with defaults.

    Raises:
        ConversionError: if torch.fx cannot trace the model.
    """
    root = skeleton(model)
    merged = retrace(root, opened, constants)
    merged.hooked = frozenset(name for name, m in model.named_modules() if _has_hooks(m))
    merged.tied = _tied_parameters(model)
    merged.was_training = model.training
    return merged


def retrace(
    root: nn.Module, opened: frozenset[str] | None, constants: dict[str, Any] | None
) -> Trace:
    """Trace a skeleton, which nobody else uses, in both modes and merge the graphs."""
    merged = trace_in_mode(root, opened, constants, training=False)
    training = trace_in_mode(root, opened, constants, training=True)
    _merge(merged, training)
    root.eval()
    return merged


def _has_hooks(module: nn.Module) -> bool:
    return any(
        getattr(module, name)
        for name in (
            "_forward_hooks",
            "_forward_pre_hooks",
            "_backward_hooks",
            "_backward_pre_hooks",
        )
    )


def _tied_parameters(model: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {key: tied for key, tied in names.items() if len(tied) > 1}


def _defaults(model: nn.Module) -> dict[str, Any]:
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def trace_in_mode(
    root: nn.Module,
    opened: frozenset[str] | None,
    constants: dict[str, Any] | None,
    *,
    training: bool,
) -> Trace:
    """Trace a skeleton, which nobody else uses, in one mode."""
    fixed = _defaults(root) if constants is None else constants
    root.train(training)
    tracer = _Tracer(opened)
    try:
        graph = tracer.trace(root, concrete_args=fixed or None)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConversionError(
            f"torch.fx cannot trace {type(root).__name__}: {reason[0]} "
            "Convert the part that can be traced (for example model.backbone) in place: "
            "dynamize(model.backbone, inplace=True)."
        ) from error
    _restore_argument_names(graph)
    return Trace(root, graph, tracer.calls, dict(tracer.unstable), dict(tracer.closed))


def _restore_argument_names(graph: fx.Graph) -> None:
    # torch.fx renames a fixed argument `flag` to `flag_1`; callers still say flag=.
    for node in graph.nodes:
        node.type = None
        if node.op == "placeholder" and "specialised" in node.meta:
            node.target = node.meta["specialised"]


class _Tracer(fx.Tracer):
    def __init__(self, opened: frozenset[str] | None) -> None:
        timm = sys.modules.get("timm.layers")
        functions = timm.get_notrace_functions() if timm else ()
        super().__init__(autowrap_functions=tuple(f for f in functions if callable(f)))
        self.leaves = _leaf_types(timm)
        self.opened = opened
        self.calls: dict[str, list[dict[str, Any]]] = {}
        self.closed: dict[str, str] = {}
        self.unstable: dict[str, str] = {}
        self.owners = [""]
        self.seen: Counter[tuple[str, str, str]] = Counter()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with _preserved_randomness() as drawn:
            graph = super().trace(root, concrete_args)
        if drawn():
            self.unstable[""] = "its forward draws random numbers in Python"
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self.opened is not None:
            return module_qualified_name not in self.opened
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

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
            reason = f"its forward cannot be traced ({_first_line(error)})"
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
        self.calls.setdefault(path, []).append(_constants(m, args, kwargs))
        depth = len(self.owners)
        self.owners.append(path)
        try:
            return forward(*args, **kwargs)
        finally:
            del self.owners[depth:]

    def _forget(self, before: int, seen: Counter[tuple[str, str, str]]) -> None:
        for node in list(self.graph.nodes)[: before - 1 if before else None : -1]:
            self.graph.erase_node(node)
        self.seen = seen

    def create_node(self, kind: str, target: Any, *rest: Any, **options: Any) -> fx.Node:
        node = super().create_node(kind, target, *rest, **options)
        like = (self.owners[-1], kind, _target_name(target))
        node.meta["key"] = (*like, self.seen[like])
        self.seen[like] += 1
        return node

    def _proxy_placeholder(self, name: str, concrete_args: Any, *rest: Any) -> Any:
        result = super()._proxy_placeholder(name, concrete_args, *rest)
        if concrete_args is not None and name in concrete_args:
            for node in self.graph.nodes:
                if node.op == "placeholder" and str(node.target).rpartition("_")[0] == name:
                    node.meta["specialised"] = name
        return result


def _leaf_types(timm: Any) -> tuple[type, ...]:
    # Per-image randomness has to stay in its module: opened, its modes take different paths.
    leaves: list[type] = [StochasticDepth]
    if timm:
        leaves += [timm.DropPath, *timm.get_notrace_modules()]
    return tuple(leaves)


def _target_name(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", repr(target))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _constants(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(m.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return {
        name: value for name, value in bound.arguments.items() if not isinstance(value, fx.Proxy)
    }


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


def _by_owner(graph: fx.Graph, skip: Iterable[str]) -> dict[str, list[fx.Node]]:
    skipped = set(skip)
    nodes: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if not (node.op == "call_module" and node.target in skipped):
            nodes.setdefault(owner(node), []).append(node)
    return nodes


def _merge(evaluated: Trace, trained: Trace) -> None:
    """Put `TRAINING` into the evaluation graph; list what differs beyond that."""
    evaluated.unstable.update(trained.unstable)
    looked_into = set(evaluated.calls) | set(trained.calls)
    ours = _by_owner(evaluated.graph, looked_into)
    theirs = _by_owner(trained.graph, looked_into)
    for path in {**ours, **theirs}:
        if path in trained.closed:
            evaluated.unstable[path] = trained.closed[path]
        elif not _merge_nodes(ours.get(path, []), theirs.get(path, [])):
            evaluated.unstable[path] = "its forward differs between training and evaluation"


def _merge_nodes(ours: list[fx.Node], theirs: list[fx.Node]) -> bool:
    if [n.meta["key"] for n in ours] != [n.meta["key"] for n in theirs]:
        return False
    for mine, other in zip(ours, theirs, strict=True):
        merged: list[Any] = []
        if not _merge_arguments((mine.args, mine.kwargs), (other.args, other.kwargs), merged):
            return False
        mine.args, mine.kwargs = merged[0]
    return True


def _merge_arguments(mine: Any, other: Any, out: list[Any]) -> bool:
    """Append to `out` the merged value of two argument trees; False where they cannot be."""
    if isinstance(mine, fx.Node) or isinstance(other, fx.Node):
        out.append(mine)
        return isinstance(mine, fx.Node) and isinstance(other, fx.Node)
    if isinstance(mine, dict):
        values: list[Any] = []
        out.append({})
        same = isinstance(other, dict) and list(mine) == list(other)
        same = same and all(_merge_arguments(mine[k], other[k], values) for k in mine)
        out[-1] = dict(zip(mine, values, strict=False))
        return same
    if isinstance(mine, tuple | list):
        values = []
        same = type(mine) is type(other) and len(mine) == len(other)
        same = same and all(
            _merge_arguments(a, b, values) for a, b in zip(mine, other, strict=True)
        )
        out.append(tuple(values) if isinstance(mine, tuple) else values)
        return same
    if mine is False and other is True:
        out.append(TRAINING)
        return True
    out.append(mine)
    return bool(type(mine) is type(other) and mine == other)
