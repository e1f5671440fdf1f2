"""A model as one graph, even where torch.fx cannot follow it as a whole.

Inside a module that cannot be traced (its forward loops over its input, or branches on values),
the largest sub-modules that can be are traced by themselves. Their nodes join the one graph under
the paths that they have in the model, so that finding, splitting and rewriting see no difference.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import fx, nn

from ..text import some
from .arguments import Extra, spelled_out, takes_more
from .both_modes import retrace
from .copying import HOOKS
from .keys import joined, key_within, within
from .lines import located
from .sizes import Given, of_images
from .skeletons import skeleton
from .traced import NotTraceable, TracedModel, defaults
from .tracer import StructureTracer


def trace(model: nn.Module, input_size: Sequence[int] | None = None) -> TracedModel:
    """Trace a model in both modes, whole or in parts.

    Args:
        model: any module; it is not touched.
        input_size: shape of one image, for a forward that decides by sizes.

    Raises:
        ConversionError: if the model cannot be copied.
    """
    try:
        traced = _traced(model, _given(model, input_size))
    except NotTraceable as error:
        traced = TracedModel(skeleton(model), fx.Graph(), {}, closed={"": str(error)})
    for path in list(traced.closed):
        _look_inside(model, traced, path, _call_of(traced, path))
    traced.hooked = frozenset(
        name for name, m in model.named_modules(remove_duplicate=False) if _has_hooks(m)
    )
    traced.tied = _tied_parameters(model)
    return traced


def _given(model: nn.Module, input_size: Sequence[int] | None) -> Given | None:
    name = next(iter(inspect.signature(model.forward).parameters), None)
    if input_size is None or name is None:
        return None
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
    return of_images(name, tuple(input_size), next(dtypes, torch.float32))


def _traced(module: nn.Module, given: Given | None = None) -> TracedModel:
    root = skeleton(module)
    try:
        traced = retrace(root, None, None, given)
    except NotTraceable:
        if not takes_more(root):
            raise
        # A single value in place of **kwargs cannot be passed on; a call on images passes none.
        root = skeleton(module)
        with spelled_out(root, Extra(), {}):
            traced = retrace(root, None, None, given)
        traced.extra[""] = Extra()
    for name, own in module.named_modules():
        root.get_submodule(name).training = own.training
    for name, made in traced.made.items():
        made.train(root.get_submodule(name.rpartition(".")[0]).training)
    return traced


def _look_inside(model: nn.Module, traced: TracedModel, path: str, call: fx.Node | None) -> None:
    """Add the largest traceable parts of the closed module at `path`."""
    for name, child in model.get_submodule(path).named_children():
        inner = joined(path, name)
        if not learns(child):
            continue
        if type(child).forward is nn.Module.forward:  # a container: nothing calls it
            _look_inside(model, traced, inner, call)
        elif not StructureTracer(None).is_leaf_module(child, inner):
            _add_part(model, traced, inner, call)


def _add_part(model: nn.Module, traced: TracedModel, path: str, call: fx.Node | None) -> None:
    module = model.get_submodule(path)
    try:
        part = _traced(module)
    except NotTraceable as error:
        traced.closed[path] = str(error)
        _look_inside(model, traced, path, call)
        return
    _join(traced, path, part, call)
    for closed, reason in part.closed.items():
        traced.closed[joined(path, closed)] = reason
        _look_inside(model, traced, joined(path, closed), _call_of(traced, joined(path, closed)))


def _call_of(traced: TracedModel, path: str) -> fx.Node | None:
    """Return the node in whose place the module at `path` runs."""
    calls = (n for n in traced.graph.nodes if n.op == "call_module" and n.target == path)
    return next(calls, None)


def _join(traced: TracedModel, path: str, part: TracedModel, call: fx.Node | None) -> None:
    """Put a part's nodes into the graph, before `call` or at the end, as the model names them."""
    parent, _, name = path.rpartition(".")
    traced.root.get_submodule(parent)._modules[name] = part.root
    traced.parts.append(path)
    traced.calls |= {joined(path, p): calls for p, calls in part.calls.items()}
    traced.calls[path] = [defaults(part.root)]
    traced.made |= {joined(path, p): made for p, made in part.made.items()}
    traced.passing |= {joined(path, p) for p in part.passing}
    traced.extra |= {joined(path, p): given for p, given in part.extra.items()}
    traced.unstable |= {joined(path, p): reason for p, reason in part.unstable.items()}
    place = traced.graph.inserting_before(call) if call else nullcontext()
    moved: dict[fx.Node, fx.Node] = {}
    with place:
        for node in part.graph.nodes:
            named = node.op in ("call_module", "get_attr")
            target = joined(path, str(node.target)) if named else node.target
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), moved.__getitem__)
            moved[node] = traced.graph.create_node(node.op, target, args, kwargs, node.name)
            renamed = tuple(joined(path, reader) for reader in node.meta.get("renamed", ()))
            key = key_within(path, node.meta["key"])
            moved[node].meta = {**node.meta, "key": key, "renamed": renamed}


def untraced_modules(traced: TracedModel, found: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the modules whose forward was not traced, and what is left out with each: why.

    Of those that hold none of the blocks `found`, the largest; of others, those that have layers
    of their own, which belong to none of their parts.
    """
    told: list[str] = []
    for path, reason in traced.closed.items():
        module = traced.root.get_submodule(path)
        if any(within(path, larger) for larger in told) or not learns(module):
            continue
        name, reason = path or type(module).__name__, located(reason, type(module).forward)
        if not any(within(block, path) for block in found):
            told.append(path)
            yield name, f"{reason}, and no block was found inside it"
        elif own := [*_own_layers(module)]:
            yield name, f"{reason}, so that its own layers ({some(own)}) are left as they are"


def _own_layers(module: nn.Module) -> Iterator[str]:
    """Yield the layers with parameters that a module's own forward calls."""
    for name, child in module.named_children():
        if type(child).forward is nn.Module.forward:
            yield from (joined(name, inner) for inner in _own_layers(child))
        elif learns(child) and StructureTracer(None).is_leaf_module(child, name):
            yield name


def learns(module: nn.Module) -> bool:
    """Return whether a module has parameters."""
    return next(module.parameters(), None) is not None


_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def _has_hooks(module: nn.Module) -> bool:
    hooks = [hook for name in (*HOOKS, *_STATE_HOOKS) for hook in getattr(module, name).values()]
    # PyTorch wraps some hooks. Removing a weight norm leaves its own, for old checkpoints, behind.
    makers = [getattr(hook, "hook", hook).__module__ for hook in hooks]
    return any(maker != "torch.nn.utils.parametrizations" for maker in makers)


def _tied_parameters(model: nn.Module) -> dict[int, list[str]]:
    """Return the names of each parameter that several modules hold, by its id."""
    names: dict[int, list[str]] = {}
    for path, module in model.named_modules():  # one of several names of a module will do
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(id(parameter), []).append(joined(path, name))
    return {key: tied for key, tied in names.items() if len(tied) > 1}
