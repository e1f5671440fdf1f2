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
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from .errors import ConversionError
from .tracer import StructureTracer


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
    """

    root: nn.Module
    graph: fx.Graph
    calls: dict[str, list[dict[str, Any]]]
    unstable: dict[str, str] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)
    hooked: frozenset[str] = frozenset()
    tied: dict[int, list[str]] = field(default_factory=dict)

    def depends_on_mode(self, path: str) -> bool:
        """Return whether anything that the module at `path` runs differs by `TRAINING`."""
        inside = (n for n in self.graph.nodes if not path or f"{owner(n)}.".startswith(f"{path}."))
        return any(TRAINING in _leaves((n.args, n.kwargs)) for n in inside)

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a ``call_module`` node calls, else None."""
        if node.op != "call_module":
            return None
        return self.root.get_submodule(str(node.target))

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
        for name in _HOOKS:
            getattr(module, name).clear()
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
    for module, copied in zip(model.modules(), root.modules(), strict=True):
        copied.training = module.training
    return merged


def retrace(
    root: nn.Module, opened: frozenset[str] | None, constants: dict[str, Any] | None
) -> Trace:
    """Trace a skeleton, which nobody else uses, in both modes and merge the graphs."""
    merged = trace_in_mode(root, opened, constants, training=False)
    training = trace_in_mode(root, opened, constants, training=True)
    _merge(merged, training)
    return merged


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def _has_hooks(module: nn.Module) -> bool:
    hooks = [hook for name in (*_HOOKS, *_STATE_HOOKS) for hook in getattr(module, name).values()]
    # PyTorch wraps some hooks. Removing a weight norm leaves its own, for old checkpoints, behind.
    makers = [getattr(hook, "hook", hook).__module__ for hook in hooks]
    return any(maker != "torch.nn.utils.parametrizations" for maker in makers)


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
    tracer = StructureTracer(opened)
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
    _mark_constants(graph)
    return Trace(root, graph, tracer.calls, dict(tracer.unstable), dict(tracer.closed))


def _restore_argument_names(graph: fx.Graph) -> None:
    # torch.fx renames a fixed argument `flag` to `flag_1`; callers still say flag=.
    for node in graph.nodes:
        node.type = None
        if node.op == "placeholder" and "specialised" in node.meta:
            node.target = node.meta["specialised"]


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
