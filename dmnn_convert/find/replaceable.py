"""Branches that can be replaced: nothing else in the model depends on what they compute."""

from __future__ import annotations

from torch import fx, nn

from ..channels import NotSplittable
from ..graph import TracedModel, at_line, is_constant, owner
from .branch import Branch
from .naming import enclosing_module


def check_replaceable(traced: TracedModel, branch: Branch) -> None:
    """Check that nothing else needs the nodes that a multi-path block replaces.

    Raises:
        NotSplittable: with the reason.
    """
    removed = [*branch.region, branch.output]
    check_owners(traced, removed)
    for node in removed:
        _check_module(traced, branch, node)
    _check_memory(traced, branch)
    _check_tensors_read(traced, branch)


def check_owners(traced: TracedModel, removed: list[fx.Node]) -> None:
    """Check that the modules whose forwards issued the nodes can get new ones.

    Raises:
        NotSplittable: with the reason.
    """
    enclosing = enclosing_module(traced, removed)
    for path in dict.fromkeys(owner(n) for n in removed):
        if path in traced.unstable:
            raise NotSplittable(f"{path or 'the model'}: {traced.unstable[path]}")
        if path != enclosing and path in traced.hooked:
            raise NotSplittable(f"{path} carries a hook; remove it and register it afterwards")
        if path == enclosing and len(traced.calls.get(path, [])) > 1:
            raise NotSplittable(f"{path} is called {len(traced.calls[path])} times in one forward")


def _check_module(traced: TracedModel, branch: Branch, node: fx.Node) -> None:
    module = traced.module(node)
    if module is None:
        return
    if node.op != "call_module":
        _check_function(traced, branch, node, module)
        return
    path = str(node.target)
    if path in traced.hooked:
        raise NotSplittable(f"{path} carries a hook; remove it and register it afterwards")
    parameters = list(module.parameters())
    if not parameters and not any(True for _ in module.buffers()):
        return
    calls = traced.call_counts[id(module)]
    if calls > 1 and calls != _calls_together(branch, node):
        raise NotSplittable(_called_again(traced, path, module))
    tied = [traced.tied[id(p)] for p in parameters if id(p) in traced.tied]
    if tied:
        raise NotSplittable(f"{path} shares a parameter ({', '.join(tied[0])})")
    if node in branch.body:
        _check_names(traced, branch, path)


def _called_again(traced: TracedModel, path: str, module: nn.Module) -> str:
    """Tell where a layer is called that may be called only once."""
    calls = [n for n in traced.graph.nodes if n.op == "call_module" and traced.module(n) is module]
    lines = ", ".join(dict.fromkeys(filter(None, (n.meta.get("line") for n in calls))))
    said = f"{path} is called {len(calls)} times in one forward"
    return f"{said}{f' ({lines})' if lines else ''}; a layer for each call would let it convert"


def _check_function(traced: TracedModel, branch: Branch, node: fx.Node, layer: nn.Module) -> None:
    """Check that a function alone reads its parameters, which no module outside the block holds."""
    inside = {id(m) for m in traced.root.get_submodule(branch.enclosing).modules()}
    for parameter in layer.parameters():
        reads = [n for n in traced.tensors_read if traced.attribute(n) is parameter]
        name, users = reads[0].target, {user for read in reads for user in read.users}
        holders = [
            traced.root.get_submodule(own.rpartition(".")[0]) for own in traced.names[id(parameter)]
        ]
        if users != {node} or any(traced.call_counts[id(holder)] for holder in holders):
            raise NotSplittable(f"{name} is read more than once in one forward")
        if any(id(holder) not in inside for holder in holders):
            raise NotSplittable(f"{name} is also held outside of the block")


def _check_names(traced: TracedModel, branch: Branch, path: str) -> None:
    """Check that the module at `path`, which is taken apart, has no name outside the block's.

    Inside, all of its names go.
    """
    inside = {id(m) for m in traced.root.get_submodule(branch.enclosing).modules()}
    for parameter in traced.root.get_submodule(path).parameters(recurse=False):
        for name in traced.names[id(parameter)]:
            held = name.rpartition(".")[0]
            if held and id(traced.root.get_submodule(held.rpartition(".")[0])) not in inside:
                raise NotSplittable(
                    f"{path} is also called {held}, which would keep it whole; delete that name"
                )


def _calls_together(branch: Branch, node: fx.Node) -> int:
    """Return how often the parts that run once call the module that a node calls."""
    for part in (branch.trunk, branch.squeezed, branch.tail.post):
        if node in part:
            return sum(n.op == "call_module" and n.target == node.target for n in part)
    return 0


def _check_memory(traced: TracedModel, branch: Branch) -> None:
    """Check that nothing notices if the block reads late and returns a new tensor.

    The block runs where its branch ends, and writes nothing into its inputs.
    """
    memory, positions = traced.memory, traced.positions
    inside = {*branch.region, branch.output}
    start = min(positions[node] for node in branch.region)
    read = {n for node in branch.region for n in node.all_input_nodes} - inside
    places = frozenset(place for value in read for place in memory.places[value])
    for write in memory.writes:
        if write in inside:
            _check_observers(traced, branch, write)
        within = start < positions[write] < positions[branch.output]
        if within and memory.overlap(memory.written(write), places):
            raise NotSplittable(f"{at_line(write)} overwrites the block's input in place")


def _check_observers(traced: TracedModel, branch: Branch, write: fx.Node) -> None:
    """Check that the block's writes are seen only through its result."""
    memory, made = traced.memory, {*branch.region, branch.output}
    if write is not branch.output and any(p.root not in made for p in memory.written(write)):
        raise NotSplittable(f"{at_line(write)} overwrites the block's input in place")
    for reader in memory.observers(write):
        raise NotSplittable(
            f"{at_line(write)} writes in place what {at_line(reader)} reads by another name"
        )
    enclosing = branch.enclosing
    for path in write.meta.get("renamed", ()):
        if enclosing and not f"{path}.".startswith(f"{enclosing}."):
            raise NotSplittable(
                f"{at_line(write)} writes in place what {path or 'the model'} reads afterwards"
            )
    for place in memory.written(write):
        if place.root.op == "placeholder" and owner(place.root):
            # Only the whole model's input is private; the input of a part belongs to its caller.
            raise NotSplittable(f"{at_line(write)} writes in place what the caller may read")
        if place.root.op == "get_attr":
            raise NotSplittable(f"{at_line(write)} writes into {place.root.target}")


def _check_tensors_read(traced: TracedModel, branch: Branch) -> None:
    """Check that nothing outside reads the tensors of the modules that are taken apart."""
    inside = set(branch.region)
    layers = [m for node in branch.body if (m := traced.module(node)) is not None]
    held = {id(t) for m in layers for t in (*m.parameters(), *m.buffers())}
    own = {n.target for node in branch.body for n in node.all_input_nodes if n.op == "get_attr"}
    for read in traced.tensors_read:
        outside = any(user not in inside and not is_constant(user) for user in read.users)
        if outside and (read.target in own or id(traced.attribute(read)) in held):
            raise NotSplittable(f"{read.target} is also read outside the block")
