"""torch.fx: a model as one graph whose nodes know which module issued them.

Two traces are taken, one in evaluation and one in training mode, and merged: where they differ
only by ``False`` against ``True`` (functional dropout with ``training=self.training``) the
constant becomes `TRAINING`, which generated code reads as ``self.training``. Where the modes take
different paths altogether, the module is listed in `Trace.unstable`, and nothing of it is
rewritten. The traced object is a skeleton (a copy that shares the parameters), so that a
``forward`` with side effects leaves nothing on the user's model.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .arguments import Extra
from .copying import HOOKS, copied
from .errors import ConversionError
from .tracer import Key, StructureTracer, first_line, names_constant


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
        root: the skeleton that was traced; parameters and modes are the model's own.
        graph: in evaluation mode, with `TRAINING` where the modes differ by that flag.
        calls: for each module that was looked into, the constant arguments of each call.
        unstable: modules whose forward cannot be rewritten -> why.
        closed: modules that could not be looked into -> why.
        hooked: modules that carry hooks (the skeleton carries none).
        tied: id of each parameter that has several names -> its names.
        parts: modules inside closed ones that were traced by themselves, into the same graph.
        constants: tensors made in a forward, which torch.fx keeps on the root.
        extra: for modules with ``*args`` or ``**kwargs``, what their call hands to these.
        passing: modules left whole that in evaluation hand on what they are given, and in training
            do more (a stochastic depth of the user's).
    """

    root: nn.Module
    graph: fx.Graph
    calls: dict[str, list[dict[str, Any]]]
    unstable: dict[str, str] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)
    hooked: frozenset[str] = frozenset()
    tied: dict[int, list[str]] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Extra] = field(default_factory=dict)
    passing: frozenset[str] = frozenset()

    def depends_on_mode(self, path: str) -> bool:
        """Return whether anything that the module at `path` runs differs by `TRAINING`."""
        inside = (n for n in self.graph.nodes if not path or f"{owner(n)}.".startswith(f"{path}."))
        return any(TRAINING in _leaves((n.args, n.kwargs)) for n in inside)

    @functools.cached_property
    def call_counts(self) -> Counter[int]:
        """How often each module is called in one forward pass, by its id: names may be several."""
        return Counter(id(self.module(n)) for n in self.graph.nodes if n.op == "call_module")

    @functools.cached_property
    def tensors_read(self) -> list[fx.Node]:
        """Nodes that read a tensor of the model by themselves, not by calling a layer."""
        return [node for node in self.graph.nodes if node.op == "get_attr"]

    @functools.cached_property
    def issued(self) -> Counter[str]:
        """How many nodes each module's forward issued, with what it calls, by its path."""
        counts: Counter[str] = Counter()
        for node in self.graph.nodes:
            parts = owner(node).split(".")
            counts.update(".".join(parts[: i + 1]) for i in range(len(parts)))
        return counts

    @functools.cached_property
    def _modules(self) -> dict[str, nn.Module]:
        return dict(self.root.named_modules(remove_duplicate=False))

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a ``call_module`` node calls, else None."""
        return self._modules[str(node.target)] if node.op == "call_module" else None

    def attribute(self, node: fx.Node) -> Any:
        """Return what a ``get_attr`` node reads."""
        value: Any = self.root
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return value


def _leaves(arguments: Any) -> list[Any]:
    found: list[Any] = []
    fx.node.map_aggregate(arguments, found.append)
    return found


class NotTraceable(ConversionError):
    """torch.fx cannot follow a module's forward."""


def owner(node: fx.Node) -> str:
    """Return the path of the module whose forward issued the node ("" for the root)."""
    return str(node.meta["key"][0])


def is_constant(node: fx.Node) -> bool:
    """Return whether a node reads nothing but tensors of the model."""
    return bool(node.meta["constant"])


def _mark_constants(graph: fx.Graph) -> None:
    for node in graph.nodes:
        inputs = node.all_input_nodes
        computed = node.op.startswith("call") and bool(inputs)
        node.meta["constant"] = node.op == "get_attr" or (
            computed and all(n.meta["constant"] for n in inputs)
        )


def key_within(path: str, key: Key) -> Key:
    """Return the key that a node of the module at `path` has in the whole model."""
    owned_by, op, target, count = key
    named = op in ("call_module", "get_attr") and not names_constant(target)
    return (joined(path, owned_by), op, joined(path, target) if named else target, count)


def joined(*path: str) -> str:
    """Join the parts of a path, of which some may be empty (the root)."""
    return ".".join(filter(None, path))


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
        new = copied(model, memo)
    except Exception as error:
        raise ConversionError(
            f"{type(model).__name__} cannot be copied ({error}); a model that copy.deepcopy "
            "refuses cannot be converted."
        ) from error
    for module in new.modules():
        for name in HOOKS:
            getattr(module, name).clear()
    return new


def retrace(
    root: nn.Module, opened: frozenset[str] | None, constants: dict[str, Any] | None
) -> Trace:
    """Trace a skeleton, which nobody else uses, in both modes and merge the graphs."""
    passing: frozenset[str] = frozenset()
    while True:
        merged = trace_in_mode(root, opened, constants, passing, training=False)
        _forget(root, merged)  # so that the second trace names its own alike
        training = trace_in_mode(root, opened, constants, passing, training=True)
        idle = {p for p in merged.calls if not merged.issued[p]} - set(merged.closed)
        found = {path for path in idle if training.issued[path] or path in training.closed}
        if not found:
            break
        _forget(root, training)
        passing |= found
    vars(root).update(merged.constants)
    _merge(merged, training)
    return merged


def _forget(root: nn.Module, traced: Trace) -> None:
    for name in traced.constants:
        delattr(root, name)


def defaults(model: nn.Module) -> dict[str, Any]:
    """Return the arguments of a forward that have defaults; the first one takes the images."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    return {p.name: p.default for p in parameters[1:] if p.default is not p.empty}


def trace_in_mode(
    root: nn.Module,
    opened: frozenset[str] | None,
    constants: dict[str, Any] | None,
    passing: frozenset[str] = frozenset(),
    *,
    training: bool,
) -> Trace:
    """Trace a skeleton, which nobody else uses, in one mode; modules `passing` are left whole.

    Raises:
        NotTraceable: if torch.fx cannot follow its forward.
    """
    fixed = defaults(root) if constants is None else constants
    root.train(training)
    before = set(vars(root))
    tracer = StructureTracer(opened, passing)
    try:
        with warnings.catch_warnings():
            # torch.fx cannot check arguments of its own making (a tensor, None) in its graph.
            warnings.filterwarnings("ignore", "Was not able to add assertion")
            graph = tracer.trace(root, concrete_args=fixed or None)
    except Exception as error:
        raise NotTraceable(f"its forward cannot be traced ({first_line(error)})") from error
    _restore_argument_names(graph)
    _hand_on_overwritten(graph)
    _mark_constants(graph)
    made = {
        name: v for name, v in vars(root).items() if name not in before and names_constant(name)
    }
    return Trace(
        root,
        graph,
        tracer.calls,
        dict(tracer.unstable),
        dict(tracer.closed),
        constants=made,
        extra=tracer.extra,
        passing=passing,
    )


def _hand_on_overwritten(graph: fx.Graph) -> None:
    """Let what reads x after a statement such as ``x.mul_(2)`` read the statement's result."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        statement = node.op == "call_method" and node.target.endswith("_") and not node.users
        if statement and node.args and isinstance(node.args[0], fx.Node):
            for user in [u for u in node.args[0].users if position[u] > position[node]]:
                user.replace_input_with(node.args[0], node)


def _restore_argument_names(graph: fx.Graph) -> None:
    # torch.fx renames a fixed argument `flag` to `flag_1`; callers still say flag=.
    # It also takes fixed lists apart, and checks each part; nothing else reads them.
    _restore_output(graph)
    fixed: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        node.type = None
        if node.op == "placeholder" and "specialised" in node.meta:
            node.target = node.meta["specialised"]
            fixed.setdefault(node.target, []).append(node)
    for parts in fixed.values():
        if len(parts) > 1:
            _erase_readers(graph, parts)
            for node in parts[1:]:
                graph.erase_node(node)


def _restore_output(graph: fx.Graph) -> None:
    """Undo what torch.fx does to the output where an argument is fixed to a list."""
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
    for path in {**ours, **theirs, **trained.closed}:
        if path in trained.closed:
            evaluated.unstable[path] = trained.closed[path]
        elif not _merge_nodes(evaluated, ours.get(path, []), trained, theirs.get(path, [])):
            evaluated.unstable[path] = "its forward differs between training and evaluation"


def _merge_nodes(
    evaluated: Trace, ours: list[fx.Node], trained: Trace, theirs: list[fx.Node]
) -> bool:
    if [n.meta["key"] for n in ours] != [n.meta["key"] for n in theirs]:
        return False
    for mine, other in zip(ours, theirs, strict=True):
        merged: list[Any] = []
        if not _merge_arguments((mine.args, mine.kwargs), (other.args, other.kwargs), merged):
            return False
        if not _same_constant(
            evaluated.constants.get(str(mine.target)), trained.constants.get(str(other.target))
        ):
            return False
        mine.args, mine.kwargs = merged[0]
    return True


def _same_constant(mine: Any, other: Any) -> bool:
    if isinstance(mine, Tensor) and isinstance(other, Tensor):
        return mine.dtype == other.dtype and torch.equal(mine, other)
    return mine is other


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
    if isinstance(mine, slice) and isinstance(other, slice):
        bounds: list[Any] = []
        pairs = ((mine.start, other.start), (mine.stop, other.stop), (mine.step, other.step))
        same = all(_merge_arguments(a, b, bounds) for a, b in pairs)
        out.append(slice(*bounds))
        return same
    if mine is False and other is True:
        out.append(TRAINING)
        return True
    out.append(mine)
    return bool(type(mine) is type(other) and mine == other)
