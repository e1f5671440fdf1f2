"""Operations that a forward runs in training only, as modules that are identities in evaluation.

A forward such as ``if self.training: y = drop_connect(y, 0.2)`` differs between the modes. If
all that training adds is computed from one value, and read in its place, the graph of evaluation
gets a node there: a module that computes it in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from .attributes import live_names, plain
from .dims import called, is_batch_size, is_size, measured
from .keys import joined
from .new_forward import give_forward

if TYPE_CHECKING:
    from .traced import TracedModel


class InTraining(nn.Module):
    """A part of a forward that runs in training only.

    Args:
        body: the computation.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, ...); in training, the body's result."""
        return self.body(x) if self.training else x


def without_additions(
    evaluated: TracedModel,
    path: str,
    ours: Sequence[fx.Node],
    trained: TracedModel,
    theirs: Sequence[fx.Node],
    twins: dict[fx.Node, fx.Node],
) -> list[fx.Node] | None:
    """Put the operations that training adds to one forward into the graph of evaluation.

    Args:
        evaluated: gets the new nodes.
        path: of the module whose forward it is.
        ours: the nodes of the forward in evaluation.
        trained: the graph of training.
        theirs: its nodes in training.
        twins: nodes in training of other such forwards -> the same in evaluation; gets these.

    Returns:
        the nodes in training without those added, one for each of `ours`; None if the forwards
        differ in more than that. Nothing is then changed.
    """
    matched, stands = _matched(ours, theirs, twins)
    if len(matched) != len(ours) or not _may_move(trained, stands):
        return None
    like = {**{n.meta["key"]: n for n in evaluated.graph.nodes if "key" in n.meta}}
    own = {**twins, **{other: mine for mine, other in zip(ours, matched, strict=True)}}
    moves: list[tuple[fx.Node, fx.Node, fx.Node, fx.Node]] = []  # added, of what, reader, here
    for added, value in stands.items():
        for reader in (user for user in added.users if user not in stands):
            here = own.get(reader) or (
                evaluated.graph.output_node() if reader.op == "output" else None
            )
            here = here or (None if reader in theirs else like.get(reader.meta.get("key")))
            mine = None if value is None else own.get(value, like.get(value.meta["key"]))
            if here is None or mine is None or value is None or mine not in here.all_input_nodes:
                return None
            if not _reads_alone(added, value, stands):
                return None
            moves.append((added, value, here, mine))
    made: dict[fx.Node, fx.Node] = {}
    for added, value, here, mine in moves:
        if added not in made:
            made[added] = _place(evaluated, path, added, value, here, mine, stands)
        here.replace_input_with(mine, made[added])
        added.replace_all_uses_with(value, delete_user_cb=lambda n: n not in stands)
    twins |= own | {moved: own[value] for moved, value, *_ in moves if value in own}
    evaluated.used |= {name for added in stands for name in live_names(added)}
    return matched


Stands = dict[fx.Node, fx.Node | None]
"""Added node -> the value that it is computed from; None if that is random or a size."""


def _matched(
    ours: Sequence[fx.Node], theirs: Sequence[fx.Node], others: dict[fx.Node, fx.Node]
) -> tuple[list[fx.Node], Stands]:
    """Tell, in order, which nodes of a forward in training also exist in evaluation."""
    matched: list[fx.Node] = []
    stands: Stands = {}
    twins = dict(others)
    for node in theirs:
        mine = ours[len(matched)] if len(matched) < len(ours) else None
        if mine is not None and _is_like(mine, node, stands, twins):
            twins[node] = mine
            matched.append(node)
            continue
        read = {stands.get(n, n) for n in node.all_input_nodes if not is_size(n)} - {None}
        stands[node] = read.pop() if len(read) == 1 else None
        if read:
            return [], {}
    return matched, stands


def _is_like(mine: fx.Node, other: fx.Node, stands: Stands, twins: dict[fx.Node, fx.Node]) -> bool:
    if (mine.op, mine.target) != (other.op, other.target) and not (
        mine.op == other.op == "get_attr" and str(mine.target) == str(other.target)
    ):
        return False
    inputs, others = mine.all_input_nodes, [stands.get(n, n) for n in other.all_input_nodes]
    if len(inputs) != len(others):
        return False
    return all(
        b is not None and (twins[b] is a if b in twins else a.meta["key"] == b.meta["key"])
        for a, b in zip(inputs, others, strict=True)
    )


def _may_move(trained: TracedModel, stands: Stands) -> bool:
    """Return whether the added nodes call only functions, and write only into themselves."""
    effects = trained.effects
    for node in stands:
        if node.op not in ("call_function", "call_method"):
            return False
        if any(value not in stands for value in effects.written(node)):
            return False
        if is_size(node) and any(
            value not in stands and not _is_read(value, stands) for value in measured(node)
        ):
            return False
    return True


def _is_read(value: fx.Node, stands: Stands) -> bool:
    return value in stands.values()


def _place(
    evaluated: TracedModel,
    path: str,
    added: fx.Node,
    value: fx.Node,
    here: fx.Node,
    mine: fx.Node,
    stands: Stands,
) -> fx.Node:
    """Add a node that runs, in training, everything that leads to an added node."""
    count = sum(name.startswith(joined(path, "in_training_")) for name in evaluated.made)
    name = f"in_training_{count}"
    module = InTraining(_body(added, value, stands))
    module.training = evaluated.root.get_submodule(path).training
    evaluated.root.get_submodule(path).add_module(name, module)
    target = joined(path, name)
    evaluated.made[target] = module
    evaluated.passing |= {target}
    with evaluated.graph.inserting_before(here):
        call = evaluated.graph.call_module(target, (mine,))
    call.meta = {
        "key": (path, "call_module", target, 0),
        "line": added.meta.get("line", ""),
        "constant": False,
    }
    return call


def _body(added: fx.Node, value: fx.Node, stands: Stands) -> nn.Module:
    graph = fx.Graph()
    values = {value: graph.placeholder("x")}
    for node in _before(added, stands):
        # Of another value, the number of images or the device, which this one tells as well.
        copied = graph.node_copy(node, lambda source: values.get(source, values[value]))
        copied.args, copied.kwargs = plain(copied.args), plain(copied.kwargs)
        values[node] = copied
    graph.output(values[added])
    body = nn.Module()
    give_forward(body, graph)
    return body


def _reads_alone(added: fx.Node, value: fx.Node, stands: Stands) -> bool:
    """Return whether what leads to an added node reads one value, and how many images others have.

    Every value of a forward has a row for each image, and stands on one device.
    """
    for node in _before(added, stands):
        if is_size(node) and value not in measured(node):
            if called(node) == "getattr" and node.args[1] == "device":
                continue
            if any(not is_size(user) and user.target not in _DRAWN for user in node.users):
                return False
            if not (is_batch_size(node) or all(is_batch_size(user) for user in node.users)):
                return False
        elif any(source is not value and source not in stands for source in node.all_input_nodes):
            return False
    return True


_DRAWN = (torch.rand, torch.randn, torch.empty, torch.full, torch.ones, torch.zeros)
"""Functions that make a tensor of a size."""


def _before(added: fx.Node, stands: Stands) -> Iterable[fx.Node]:
    """Yield, in order, the added nodes that lead to a node, and the node."""
    needed, stack = set[fx.Node](), [added]
    while stack:
        node = stack.pop()
        if node in stands and node not in needed:
            needed.add(node)
            stack += node.all_input_nodes
    return (node for node in stands if node in needed)
