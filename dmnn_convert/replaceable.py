"""Whether a branch can be taken out of its model: nothing else may depend on what goes."""

from __future__ import annotations

from torch import fx

from .branch import Branch, common_owner
from .hidden import NotSplittable
from .ops import class_name, op_name, writes_in_place
from .trace import Trace, is_constant, owner


def check_replaceable(traced: Trace, branch: Branch, positions: dict[fx.Node, int]) -> None:
    """Check that nothing else needs what a multi-path block replaces.

    Raises:
        NotSplittable: with the reason.
    """
    removed = [*branch.region, branch.output]
    check_owners(traced, removed)
    for node in removed:
        _check_module(traced, branch, node)
    overwritten = branch.output.args[0] if writes_in_place(traced, branch.output) else None
    if isinstance(overwritten, fx.Node) and any(
        positions[user] > positions[branch.output] for user in overwritten.users
    ):
        raise NotSplittable(f"{overwritten.name} is summed in place and read afterwards")
    if isinstance(overwritten, fx.Node) and overwritten.op == "placeholder" and owner(overwritten):
        # Only the whole model's input belongs to nobody else; a part's is its caller's.
        raise NotSplittable(f"{overwritten.name} is summed in place and may be read by the caller")
    for user in _readers_of_aliases(traced, branch.fork):
        if writes_in_place(traced, user) and user is not branch.output:
            raise NotSplittable(f"{user.name} overwrites the block's input in place")
    _check_tensors_read(traced, branch)


def check_owners(traced: Trace, removed: list[fx.Node]) -> None:
    """Check that the modules whose forwards issued the nodes can get new ones.

    Raises:
        NotSplittable: with the reason.
    """
    enclosing = common_owner(removed)
    for path in {owner(n) for n in removed}:
        if path in traced.unstable:
            raise NotSplittable(f"{path or 'the model'}: {traced.unstable[path]}")
        if path != enclosing and path in traced.hooked:
            raise NotSplittable(f"{path} carries a hook; remove it and register it afterwards")
        if len(traced.calls.get(path, [])) > 1:
            raise NotSplittable(f"{path} is called {len(traced.calls[path])} times in one forward")


def _check_module(traced: Trace, branch: Branch, node: fx.Node) -> None:
    module = traced.module(node)
    if module is None:
        return
    path = str(node.target)
    if path in traced.hooked:
        raise NotSplittable(f"{path} carries a hook; remove it and register it afterwards")
    parameters = list(module.parameters())
    if not parameters and not any(True for _ in module.buffers()):
        return
    calls = traced.call_counts[id(module)]
    if calls > 1 and calls != _calls_together(branch, node):
        raise NotSplittable(f"{path} is called {calls} times in one forward")
    tied = [traced.tied[id(p)] for p in parameters if id(p) in traced.tied]
    if tied:
        raise NotSplittable(f"{path} shares a parameter ({', '.join(tied[0])})")


def _calls_together(branch: Branch, node: fx.Node) -> int:
    """Return how often what runs once for all sub-blocks calls the module that a node calls."""
    for part in (branch.trunk, branch.squeezed, branch.tail.post):
        if node in part:
            return sum(n.op == "call_module" and n.target == node.target for n in part)
    return 0


_ALIASES = (
    *("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "permute", "transpose"),
    *("swapaxes", "movedim", "getitem", "chunk", "split", "unbind", "narrow", "expand", "unfold"),
    *("contiguous", "to", "type_as", "float", "half", "squeeze", "unsqueeze", "getattr"),
    *("dropout", "dropout2d", "dropout3d", "drop_path", "stochastic_depth"),
)
_ALIAS_CLASSES = (
    *("Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "DropPath", "StochasticDepth"),
    *("Flatten", "Unflatten"),
)


def hands_on_memory(traced: Trace, node: fx.Node) -> bool:
    """Return whether an operation's result may be its input's memory."""
    return op_name(node) in _ALIASES or class_name(traced.module(node)) in _ALIAS_CLASSES


def _readers_of_aliases(traced: Trace, value: fx.Node) -> list[fx.Node]:
    """Return what reads a value, also through operations that may hand on its memory."""
    found: list[fx.Node] = []
    for user in value.users:
        found.append(user)
        if hands_on_memory(traced, user):
            found += _readers_of_aliases(traced, user)
    return found


def _check_tensors_read(traced: Trace, branch: Branch) -> None:
    """Check that nothing outside reads the tensors of what is taken apart."""
    inside = set(branch.region)
    layers = [str(node.target) for node in branch.body if node.op == "call_module"]
    own = {n.target for node in branch.body for n in node.all_input_nodes if n.op == "get_attr"}
    for read in traced.tensors_read:
        outside = any(user not in inside and not is_constant(user) for user in read.users)
        holder = str(read.target).rpartition(".")[0]
        if outside and (read.target in own or holder in layers):
            raise NotSplittable(f"{read.target} is also read outside the block")
