"""The anatomy of a branch: trunk → producers → channel-wise operations → consumers → tail.

From this one description follow the splits, the inheritance of weights and the FLOPs table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from ..channels import (
    HEADS,
    Hidden,
    Mismatch,
    NotSplittable,
    channel_place,
    conv_of,
    follow,
    layer_of,
    mark_context,
    op_name,
    parameter_behind,
    partition,
    rule,
    tensor_inputs,
    values_read,
)
from ..graph import Role, Rule, TracedModel, at_line, called, is_constant, is_size, is_unread_part
from .kind import kind
from .naming import enclosing_module
from .tail import Tail, attends, find_tail


@dataclass(frozen=True, eq=False)
class Branch:
    """The parts of a residual branch, as nodes of the traced graph.

    Attributes:
        fork: what the branch and the shortcut both read.
        region: every node between the fork and the output; all of them are replaced.
        trunk: nodes computed whole, from the fork; shared by the sub-blocks.
        body: nodes of which each sub-block runs a part, in order.
        squeezed: nodes computed whole from the sums of the sub-blocks' reducers.
        hidden: how the body's values hold the hidden channels.
        tail: the consumers and what follows them.
        output: the sum, or the last node of a chain without one.
        shortcut: the sum's other operand; None for a chain.
        context: what else the branch reads: conditions (a time embedding), and sizes of other
            values (of a map made into tokens).
        kind: the block's kind.
        enclosing: path of the smallest module whose forward encloses the branch and its sum.
        channel_dim: the dimension of the fork's channels, 1 or -1.
        channels: how many channels the fork has.
    """

    fork: fx.Node
    region: tuple[fx.Node, ...]
    trunk: tuple[fx.Node, ...]
    body: tuple[fx.Node, ...]
    squeezed: tuple[fx.Node, ...]
    hidden: Hidden
    tail: Tail
    output: fx.Node
    shortcut: fx.Node | None
    context: tuple[fx.Node, ...]
    kind: str
    enclosing: str
    channel_dim: int
    channels: int
    shared_trunk: bool

    @property
    def consumer(self) -> fx.Node:
        """The first layer that reads the hidden channels."""
        return self.tail.consumers[0]

    @property
    def producers(self) -> tuple[fx.Node, ...]:
        """Dense layers that make the hidden channels."""
        return tuple(self.hidden.producers)

    @property
    def width(self) -> int:
        """How many hidden channels there are."""
        return self.hidden.layouts[values_read(self.consumer)[0]].count

    @property
    def units(self) -> int:
        """How many parts of the hidden channels are independent of each other."""
        return self.hidden.units

    @property
    def is_bottleneck(self) -> bool:
        """Whether it is a dense 1×1 → k×k → 1×1, which the paper splits by matched widths."""
        return self.kind == "bottleneck"

    @property
    def conditions(self) -> tuple[fx.Node, ...]:
        """What the branch reads besides its input, a row for each image or one for all."""
        return tuple(value for value in self.context if not is_size(value))

    @property
    def exact_split(self) -> str:
        """The split that keeps the function."""
        return "shared-trunk" if self.shared_trunk else "hidden-channel"

    @property
    def matched_split(self) -> str:
        """The split that the paper would make, parameters being equal."""
        if self.is_bottleneck:
            return "matched-width"
        return "own-squeeze" if self.squeezes else self.exact_split

    @property
    def squeezes(self) -> bool:
        """Whether learned layers squeeze the hidden channels (squeeze-excite)."""
        return any(op_name(node) != "mean" for node in self.hidden.reducers)


def with_shared_norm(traced: TracedModel, branch: Branch) -> Branch:
    """Return the branch with its tail norm run once, on the gated sum, if it has one.

    Raises:
        NotSplittable: if there are norms, but what sub-blocks run does not end with one.
    """
    norms = [n for n in branch.tail.shared_out if rule(traced, n).role is Role.NORM]
    if not norms:
        return branch
    if norms[-1] is not branch.tail.shared_out[-1]:
        raise NotSplittable(f"{at_line(norms[-1])} is not the last operation of a sub-block")
    body = tuple(node for node in branch.body if node is not norms[-1])
    return replace(branch, body=body, tail=branch.tail.sharing(norms[-1]))


def analyse_region(
    traced: TracedModel,
    fork: fx.Node,
    region: Sequence[fx.Node],
    end: fx.Node,
    output: fx.Node,
    shortcut: fx.Node | None,
) -> Branch:
    """Describe the branch between a fork and its end.

    Raises:
        NotSplittable: with the reason, if no split fits.
    """
    rules = {node: rule(traced, node) for node in region}
    _check_rules(rules)
    conditions = _conditions(fork, region)
    context = (*conditions, *mark_context(region, {fork, *region}))
    tail = find_tail(region, end, rules, _mixers(traced, rules))
    after = {*tail.consumers, *tail.shared_out, *tail.post}
    inside = [n for n in region if n not in after and not is_unread_part(n)]
    hidden = _follow(traced, inside, tail)
    own = hidden.split | set(hidden.reducers) | set(tail.consumers) | set(tail.shared_out)
    body = tuple(n for n in region if n in own)
    squeezed = tuple(n for n in region if n in hidden.squeezed)
    running = [n for n in inside if n not in own and n not in hidden.squeezed]
    trunk = tuple(n for n in running if not is_size(n) and not is_constant(n))
    if attends(trunk):
        raise NotSplittable(HEADS)
    _check_images(rules, (*trunk, *body, *squeezed, *tail.post))
    place = channel_place(traced, fork, region)
    layers = [layer for n in trunk if (layer := layer_of(traced, n))]
    return Branch(
        fork=fork,
        region=tuple(region),
        trunk=trunk,
        body=body,
        squeezed=squeezed,
        hidden=hidden,
        tail=tail,
        output=output,
        shortcut=shortcut,
        context=context,
        kind=kind(traced, rules, trunk, hidden, tail, body),
        enclosing=enclosing_module(traced, [*region, output]),
        channel_dim=place[0],
        channels=place[1],
        shared_trunk=bool(layers),
    )


def _conditions(fork: fx.Node, region: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
    """Return the values besides its input that a branch reads."""
    known = {fork, *region}
    read = dict.fromkeys(value for node in region for value in tensor_inputs(node))
    return tuple(v for v in read if not (v in known or is_size(v) or is_constant(v)))


def _mixers(
    traced: TracedModel, rules: Mapping[fx.Node, Rule]
) -> tuple[frozenset[fx.Node], frozenset[fx.Node]]:
    """Return the layers that mix all channels, and with these the ones that mix those of groups."""
    dense = frozenset(n for n, known in rules.items() if known.role is Role.DENSE)
    grouped = {n: conv_of(traced, n) for n, known in rules.items() if known.role is Role.GROUPED}
    wide = {n for n, conv in grouped.items() if conv is not None and conv.in_channels > conv.groups}
    return dense, dense | wide


def _follow(traced: TracedModel, inside: Sequence[fx.Node], tail: Tail) -> Hidden:
    """Follow the hidden channels; values that cannot be shared out are computed whole."""
    whole: set[fx.Node] = set()
    while True:
        hidden = follow(traced, inside, tail.consumers, whole)
        clashes = _parameters_read_later(hidden, tail)
        try:
            partition(traced, hidden, min(2, hidden.units))
        except Mismatch as mismatch:
            if mismatch.node in whole:
                raise
            clashes.add(mismatch.node)
        if not clashes:
            return hidden
        whole |= clashes


def _parameters_read_later(hidden: Hidden, tail: Tail) -> set[fx.Node]:
    """Return the nodes that cut a tensor of the model which the tail reads whole."""
    constants = {n for node in tail.shared_out for n in node.all_input_nodes if is_constant(n)}
    whole = {parameter_behind(n) for n in constants}
    cut = [c for c in hidden.parameters if parameter_behind(c) in whole]
    return {reader for c in cut for reader in c.users if reader in hidden.split}


def _check_rules(rules: Mapping[fx.Node, Rule]) -> None:
    for node, known in rules.items():
        if known.refusal:
            raise NotSplittable(f"{at_line(node)} {known.refusal}")


def _check_images(rules: Mapping[fx.Node, Rule], nodes: Sequence[fx.Node]) -> None:
    for node in nodes:
        if not rules[node].per_image:
            where = node.meta.get("line") or node.name
            raise NotSplittable(
                f"{called(node)} ({where}) is not known to treat every image by itself"
            )
