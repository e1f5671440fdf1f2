"""Multi-path blocks in the place of branches: new forwards for the enclosing modules."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ..errors import ConversionError
from ..find import Branch
from ..graph import (
    TAKEN,
    Key,
    NotTraceable,
    TracedModel,
    built_in,
    check_sizes,
    depends_on_mode,
    give_forward,
    joined,
    key_within,
    let_each_read_its_own,
    live_names,
    owner,
    plain,
    retrace,
    skeleton,
    spelled_out,
    trace_in_mode,
    with_a_mode_of_its_own,
)
from ..nn import MultiPathBlock
from .guards import freeze_inside, keep_holders, reason_against, values_from_elsewhere
from .removal import all_names, remove, remove_unread


@dataclass(frozen=True)
class Replacement:
    """A multi-path block and the branch whose place it takes."""

    branch: Branch
    block: MultiPathBlock


class Unreplaceable(Exception):
    """Branches that cannot be taken out of their forwards, with the reasons."""

    def __init__(self, branches: Iterable[Branch], reason: str) -> None:
        super().__init__(reason)
        self.outputs = [branch.output for branch in branches]


def rewrite(root: nn.Module, traced: TracedModel, replacements: Sequence[Replacement]) -> None:
    """Rewrite every enclosing module of `root`, in place, innermost first.

    Raises:
        Unreplaceable: if a forward, traced by itself, does not show a branch as it was found.
    """
    grouped: dict[str, list[Replacement]] = {}
    for replacement in replacements:
        grouped.setdefault(replacement.branch.enclosing, []).append(replacement)
    rewritten: list[str] = []
    for path in sorted(grouped, key=lambda p: -len(p.split(".")) if p else 1):
        module = root.get_submodule(path)
        # A skeleton is at hand, unless something inside has just been rewritten.
        fresh = any(not path or done.startswith(f"{path}.") for done in rewritten)
        copied = skeleton(module) if fresh else traced.root.get_submodule(path)
        _rewrite_one(module, copied, path, traced, grouped[path])
        rewritten.append(path)


def _rewrite_one(
    module: nn.Module,
    copied: nn.Module,
    path: str,
    traced: TracedModel,
    replacements: Sequence[Replacement],
) -> None:
    branches = [replacement.branch for replacement in replacements]
    local, nodes = _traced_alone(copied, path, traced, branches)
    graph = local.graph
    own_mode = next(with_a_mode_of_its_own(module, graph.nodes, sorted(local.calls)), None)
    if own_mode is not None:
        raise Unreplaceable(
            branches, f"{joined(path, own_mode)} has a mode, or train(), of its own"
        )
    moved = {owner(n) for b in branches for n in b.region if depends_on_mode(n)}
    before = _targets(graph)
    names = _child_names(module, len(replacements))
    read_by = {node: live_names(node) for node in graph.nodes}
    for name, branch in zip(names, branches, strict=True):
        _replace(graph, nodes, branch, name)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op != "get_attr")
    check_sizes(graph, local.sizes.get(""), path or type(module).__name__)
    remaining = _targets(graph)
    inside = dict(module.named_modules())
    taken = before - remaining
    for target in all_names(module, taken, remaining):
        remove(module, target)
    for holder in {target.rpartition(".")[0] for target in taken} - {""}:
        remove_unread(module, holder, remaining)
    keep_holders(module, copied, local.calls, inside)
    for name in local.made.keys() & remaining:
        holder, _, own = name.rpartition(".")
        module.get_submodule(holder).add_module(own, local.made[name])
    for name in local.constants.keys() & remaining:
        setattr(module, name, local.constants[name])
    for name, replacement in zip(names, replacements, strict=True):
        module.add_module(name, replacement.block)
    kept = set(graph.nodes)
    gone = {name for node, read in read_by.items() if node not in kept for name in read}
    live = {name for node in kept for name in read_by.get(node, ())} - gone - local.used
    paths = {name for name, _ in module.named_modules()}
    let_each_read_its_own(graph, paths)
    for inner in (moved - {path}) & {joined(path, name) for name in paths}:
        raise Unreplaceable(
            branches, f"the block's dropout follows the mode of {inner}, which stays"
        )
    lost = {name for name in live if name.rpartition(".")[0] not in paths}
    for node in kept if lost else ():
        node.args, node.kwargs = plain((node.args, node.kwargs), lost)
    live -= lost
    taken |= inside.keys() - paths
    freeze_inside(module, copied, local.calls, live, (gone | local.used) - live, taken)
    frozen = dict(built_in(module, live)) | dict.fromkeys(taken, TAKEN)
    outer = values_from_elsewhere(module, copied, local.calls.keys())
    computed = local.constants.keys() & remaining  # with a tensor, perhaps, that is read as well
    read = set() if computed else before
    reason = reason_against(module, copied, local.calls.keys(), outer, read)
    if reason is not None:
        raise Unreplaceable(branches, reason)
    give_forward(module, graph, tuple(sorted(frozen.items())), outer)


Nodes = dict[Key, fx.Node]
"""The nodes of an inner graph by the keys that they have in the whole model."""


def _traced_alone(
    copied: nn.Module, path: str, traced: TracedModel, branches: Sequence[Branch]
) -> tuple[TracedModel, Nodes]:
    """Trace the forward that holds branches, looking into no more modules than they need."""
    placed = [n for branch in branches for n in (*branch.region, branch.output)]
    opened = {inner for node in placed for inner in _between(path, owner(node))}
    constants = traced.calls[path][0] if path else None
    given = traced.sizes.get(path)
    while True:
        try:
            with spelled_out(copied, traced.extra.get(path), constants or {}):
                if traced.depends_on_mode(path):
                    local = retrace(copied, frozenset(opened), constants, given)
                else:
                    local = trace_in_mode(
                        copied, frozenset(opened), constants, given=given, training=False
                    )
        except NotTraceable as error:
            raise Unreplaceable(branches, str(error)) from error
        nodes = {key_within(path, n.meta["key"]): n for n in local.graph.nodes if "key" in n.meta}
        passed = {name for b in branches for name in _passed_through(path, traced, nodes, b)}
        if not passed:
            _check_calls(path, traced, local, branches)
            return local, nodes
        opened |= passed
        for name in local.constants:
            delattr(copied, name)


def _check_calls(
    path: str, traced: TracedModel, local: TracedModel, branches: Sequence[Branch]
) -> None:
    """Check that what is called in the forward at `path` is called nowhere else.

    Its nodes are told apart by how many of their like came before.
    """
    for inner, calls in local.calls.items():
        everywhere = traced.calls.get(name := joined(path, inner), calls)
        if inner and len(everywhere) != len(calls):
            raise Unreplaceable(branches, f"{name} is also called outside of the block's forward")


def _passed_through(path: str, traced: TracedModel, nodes: Nodes, branch: Branch) -> Iterator[str]:
    """Yield modules, closed so far, that return a value of the branch unchanged.

    Traced into, such a module vanishes: an empty `nn.Sequential`, a user's identity.
    """
    missing = next((n for n in (*branch.region, branch.output) if n.meta["key"] not in nodes), None)
    if missing is not None:
        raise Unreplaceable([branch], f"{missing.name} is not where it was when it was found")
    other = (n for n in branch.region if _reads(nodes[n.meta["key"]]) < _reads(n))
    unlike = next(other, None)
    if unlike is not None:
        raise Unreplaceable([branch], f"{unlike.name} is not what it was when it was found")
    removed = {nodes[n.meta["key"]]: None for n in (*branch.region, branch.output)}
    inside = [node for node in removed if node is not nodes[branch.output.meta["key"]]]
    calls = dict.fromkeys(u for node in inside for u in node.users if u not in removed)
    for value in dict.fromkeys(v for n in branch.region for v in n.all_input_nodes):
        versions = _versions(nodes, branch.region, value)
        calls |= versions if len(versions) > 1 and value not in branch.region else {}
    for call in calls:
        name = joined(path, str(call.target))
        looked_into = call.op == "call_module" and name in traced.calls
        if looked_into and name not in traced.hooked and name not in traced.unstable:
            yield str(call.target)
        elif call in inside or any(call in node.users for node in inside):
            raise Unreplaceable([branch], _why_closed(traced, call, name))


def _reads(node: fx.Node) -> int:
    return len(node.all_input_nodes)


def _why_closed(traced: TracedModel, call: fx.Node, name: str) -> str:
    if name in traced.hooked:
        return f"{name} carries a hook; remove it and register it afterwards"
    if name in traced.unstable:
        return f"{name}: {traced.unstable[name]}"
    return f"{call.name} reads a value that only the branch does otherwise"


def _versions(nodes: Nodes, readers: Sequence[fx.Node], value: fx.Node) -> dict[fx.Node, None]:
    """Return the nodes that stand for a value in an inner graph; a module may give several."""
    places = [(nodes[r.meta["key"]], r.all_input_nodes) for r in readers]
    return dict.fromkeys(
        reader.all_input_nodes[inputs.index(value)] for reader, inputs in places if value in inputs
    )


def _between(enclosing: str, inner: str) -> Iterator[str]:
    """Yield the modules from below `enclosing` down to `inner`, as seen from `enclosing`."""
    relative = inner.removeprefix(f"{enclosing}." if enclosing else "")
    if inner != enclosing and relative:
        parts = relative.split(".")
        yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def _child_names(module: nn.Module, count: int) -> list[str]:
    names = ["multi_path"] if count == 1 else [f"multi_path_{i}" for i in range(count)]
    taken = [name for name in names if hasattr(module, name)]
    if taken:
        raise ConversionError(f"{type(module).__name__} already has an attribute {taken[0]!r}.")
    return names


def _replace(graph: fx.Graph, nodes: dict[Key, fx.Node], branch: Branch, name: str) -> None:
    removed = [nodes[n.meta["key"]] for n in branch.region]
    output = nodes[branch.output.meta["key"]]
    fork = _local(nodes, branch.region, branch.fork)
    arguments: list[fx.Node | None] = [fork]
    if branch.shortcut is not None:
        arguments.append(_local(nodes, [branch.output], branch.shortcut))
    if branch.context:
        context = [_local(nodes, branch.region, size) for size in branch.context]
        arguments = [*arguments, *[None] * (2 - len(arguments)), *context]
    with graph.inserting_before(output):
        call = graph.call_module(name, tuple(arguments))
    output.replace_all_uses_with(call)
    for node in [output, *(n for n in reversed(removed) if n is not output)]:
        graph.erase_node(node)


def _local(nodes: dict[Key, fx.Node], readers: Sequence[fx.Node], value: fx.Node) -> fx.Node:
    """Return the node that stands for a value, maybe an argument, in an inner graph."""
    reader = next(r for r in readers if value in r.all_input_nodes)
    place = reader.all_input_nodes.index(value)
    return nodes[reader.meta["key"]].all_input_nodes[place]


def _targets(graph: fx.Graph) -> set[str]:
    return {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}


@contextmanager
def undone_on_error(root: nn.Module) -> Iterator[None]:
    """Restore every module of `root` if the body raises."""
    saved = [(m, type(m), _snapshot(m)) for m in root.modules()]
    try:
        yield
    except BaseException:
        for module, cls, state in saved:
            module.__class__ = cls
            module.__dict__.clear()
            module.__dict__.update(state)
        raise


def _snapshot(module: nn.Module) -> dict[str, Any]:
    tables: Iterable[str] = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
    return {k: copy.copy(v) if k in tables else v for k, v in vars(module).items()}
