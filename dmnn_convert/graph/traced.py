"""A traced model: one torch.fx graph whose nodes know the module that issued them.

Two traces are taken, one in evaluation and one in training mode, and merged: where they differ
only by ``False`` against ``True`` (functional dropout with ``training=self.training``) the
constant becomes `TRAINING`, which generated code reads as ``self.training``. If the modes take
different paths altogether, the module is listed in `TracedModel.unstable` and is not rewritten.
The traced object is a skeleton, a copy that shares the parameters. A ``forward`` with side effects
therefore leaves nothing on the user's model.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..errors import ConversionError
from ..text import first_sentence
from .aliases import Memory, hand_on, without_unseen_writes
from .ambient import ordinary
from .arguments import IN_A_CONTAINER, Extra, outlasts_calls, restore_arguments
from .attributes import live
from .exchange import ONE_TRACE
from .functional import layer_read
from .holders import version_of
from .keys import names_constant
from .lines import at_line
from .own_layers import own_layer
from .replaced import REPLACED, own_forward
from .sizes import Given
from .tracer import StructureTracer
from .writes import Effects


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
class TracedModel:
    """A model as a graph.

    Attributes:
        root: the skeleton that was traced; parameters and modes are the model's own.
        graph: in evaluation mode, with `TRAINING` where the modes differ by that flag.
        calls: for each module that was traced into, the constant arguments of each call.
        unstable: modules whose forward cannot be rewritten -> why.
        closed: modules that could not be traced into -> why.
        hooked: modules that carry hooks (the skeleton carries none).
        tied: id of each parameter that has several names -> its names.
        parts: modules inside closed ones that were traced by themselves, into the same graph.
        constants: tensors made in a forward, which torch.fx keeps on the root.
        used: plain attributes that decide how a forward runs, or are computed with first.
        extra: for modules with ``*args`` or ``**kwargs``, the values that their call gives these.
        passing: modules left whole that are identities in evaluation but not in training (a user's
            stochastic depth).
        made: modules, by path, that run the training-only operations of a forward.
        functional: functions that were asked for -> the layer that each of them is, if any.
        sizes: modules whose forward decides by sizes -> the sizes of its arguments.
        returned: for each module that was looked into, the values that each call gave.
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
    used: set[str] = field(default_factory=set)
    extra: dict[str, Extra] = field(default_factory=dict)
    passing: frozenset[str] = frozenset()
    sizes: dict[str, Given] = field(default_factory=dict)
    made: dict[str, nn.Module] = field(default_factory=dict)
    returned: dict[str, list[list[fx.Node]]] = field(default_factory=dict)
    functional: dict[fx.Node, nn.Module | None] = field(default_factory=dict)

    @property
    def does_more(self) -> bool:
        """Whether a forward does more than the graph shows: a side effect, a random draw."""
        return any(reason != IN_A_CONTAINER for reason in self.unstable.values())

    def depends_on_mode(self, path: str) -> bool:
        """Return whether anything that the module at `path` runs differs by `TRAINING`."""
        inside = (n for n in self.graph.nodes if not path or f"{owner(n)}.".startswith(f"{path}."))
        return any(
            TRAINING in _leaves((n.args, n.kwargs)) or str(n.target) in self.made for n in inside
        )

    @functools.cached_property
    def positions(self) -> dict[fx.Node, int]:
        """Where each node stands in the graph, once that is complete."""
        return {node: i for i, node in enumerate(self.graph.nodes)}

    @functools.cached_property
    def call_counts(self) -> Counter[int]:
        """How often each module is called in one forward pass, by its id: names may be several."""
        return Counter(id(self.module(n)) for n in self.graph.nodes if n.op == "call_module")

    @functools.cached_property
    def names(self) -> dict[int, list[str]]:
        """All names of each parameter, by its id."""
        names: dict[int, list[str]] = {}
        for name, parameter in self.root.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        return names

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

    @property
    def effects(self) -> Effects:
        """The effects of the graph's operations on memory."""
        return Effects(self.module, frozenset(self.closed))

    @functools.cached_property
    def memory(self) -> Memory:
        """The values that share memory, once the graph is complete."""
        return Memory(self.graph, self.effects)

    @functools.cached_property
    def _modules(self) -> dict[str, nn.Module]:
        return dict(self.root.named_modules(remove_duplicate=False))

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, or the layer that a function of parameters is."""
        if node.op == "call_module":
            return self._modules[str(node.target)]
        if node not in self.functional:
            self.functional[node] = layer_read(node, self.attribute)
        return self.functional[node]

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


def forget(root: nn.Module, traced: TracedModel) -> None:
    """Remove from a model the tensors that its trace has added."""
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
    given: Given | None = None,
    *,
    training: bool,
) -> TracedModel:
    """Trace a skeleton, which nothing else uses, in one mode; modules `passing` are left whole.

    Raises:
        NotTraceable: if torch.fx cannot follow its forward.
    """
    fixed = defaults(root) if constants is None else constants
    if own_forward(root) is None:
        raise NotTraceable(REPLACED)
    tensor = next((name for name, value in defaults(root).items() if isinstance(value, Tensor)), "")
    if tensor:
        raise NotTraceable(f"its argument {tensor}= is a tensor by default; make it a buffer")
    kept = next((name for name, value in defaults(root).items() if outlasts_calls(root, value)), "")
    if kept:
        raise NotTraceable(f"its argument {kept}= defaults to a container, which calls share")
    wanted = [(parameter, parameter.requires_grad) for parameter in root.parameters()]
    root.train(training)
    for parameter, gradients in wanted:  # which the model has too, and train() may have set
        parameter.requires_grad_(gradients)
    for module in root.modules():
        own_layer(module)  # examined before live numbers replace its settings
    before = set(vars(root))
    tracer = StructureTracer(opened, passing, given)
    try:
        # Traced without gradients and then with them, the modes show both kinds of with block.
        with ONE_TRACE, ordinary(gradients=training), live(dict(root.named_modules())) as used:
            tracer.used = used
            with warnings.catch_warnings():
                # torch.fx cannot check arguments of its own making (a tensor, None) in its graph.
                warnings.filterwarnings("ignore", "Was not able to add assertion")
                graph = tracer.trace(root, concrete_args=fixed or None)
            used = set(used)  # later questions about the numbers decide nothing
    except Exception as error:
        raise NotTraceable(f"its forward cannot be traced ({first_sentence(error)})") from error
    restore_arguments(graph)
    _mark_constants(graph)
    made = {
        name: v for name, v in vars(root).items() if name not in before and names_constant(name)
    }
    result = TracedModel(root, graph, tracer.calls, dict(tracer.unstable), dict(tracer.closed))
    result.constants, result.used = made, used
    result.extra, result.passing, result.sizes = tracer.extra, passing, tracer.sizes.asked
    result.returned = tracer.returned
    _note_writes(result, tracer.versions)
    return result


def _note_writes(traced: TracedModel, versions: dict[str, int]) -> None:
    """Let values record writes into them; list forwards that write into a tensor they make."""
    # Not traced.module, whose modules may still be replaced by parts.
    modules = dict(traced.root.named_modules(remove_duplicate=False))
    effects = Effects(lambda node: modules.get(str(node.target)), frozenset(traced.closed))
    hand_on(traced.graph, effects)
    memory = Memory(traced.graph, effects)
    without_unseen_writes(memory)
    if not traced.constants:
        return
    for node in memory.writes:
        names = {str(place.root.target) for place in memory.written(node)}
        for name in names & traced.constants.keys():
            _refuse_constant(traced, owner(node), traced.constants[name], at_line(node))
    for node in traced.graph.nodes:
        constant = traced.constants.get(str(node.target)) if node.op == "get_attr" else None
        if constant is not None and version_of(constant) != versions[str(node.target)]:
            _refuse_constant(traced, owner(node), constant, at_line(node))


def _refuse_constant(traced: TracedModel, path: str, constant: Any, where: str) -> None:
    """List a forward that writes into a tensor which it makes, or the forward that passes it in.

    A new forward would make the tensor only once.
    """
    while True:
        traced.unstable[path] = f"{where} writes into a tensor that each forward makes"
        given = [pytree.tree_leaves(call) for call in traced.calls.get(path, [])]
        if not path or not any(value is constant for call in given for value in call):
            return
        path = path.rpartition(".")[0]
