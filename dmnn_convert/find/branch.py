"""Describe a branch: trunk → producers → channel-wise operations → consumers → tail.

From this one description follow the splits, the inheritance of weights and the FLOPs table.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from .dims import called, is_size, permutation
from .hidden import HEADS, Hidden, Mismatch, NotSplittable, follow, mark_context, values_read
from .layout import (
    ELEMENTWISE,
    channel_count,
    channel_dim,
    constant_value,
    parameter_behind,
)
from .ops import Role, Rule, is_plain_conv, op_name, rule, tensor_inputs
from .partition import partition
from .tail import Tail, attends, find_tail
from .trace import Trace, is_constant, owner


@dataclass(frozen=True, eq=False)
class Branch:
    """The parts of a residual branch, as nodes of the traced graph.

    Attributes:
        fork: what the branch and the shortcut both read.
        region: every node between the fork and the output; all of them are replaced.
        trunk: what is computed whole, from the fork; shared by the sub-blocks.
        body: what each sub-block runs a part of, in order.
        squeezed: what is computed whole from the sums of the sub-blocks' reducers.
        hidden: how the body's values hold the hidden channels.
        tail: the consumers and what follows them.
        output: the sum, or the last node of a chain without one.
        shortcut: the sum's other operand; None for a chain.
        context: sizes of other values, which the branch reads (of a map made into tokens).
        kind: the block's kind.
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
    def enclosing(self) -> str:
        """Path of the smallest module that encloses the branch and its sum."""
        return common_owner([*self.region, self.output])

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
        return any(node.op == "call_module" for node in self.hidden.reducers)


def with_shared_norm(traced: Trace, branch: Branch) -> Branch:
    """Return the branch with its tail norm run once, on the gated sum, if it has one.

    Raises:
        NotSplittable: if there are norms, but what sub-blocks run does not end with one.
    """
    norms = [n for n in branch.tail.shared_out if rule(traced, n).role is Role.NORM]
    if not norms:
        return branch
    if norms[-1] is not branch.tail.shared_out[-1]:
        raise NotSplittable(f"{norms[-1].name} is not the last operation of a sub-block")
    body = tuple(node for node in branch.body if node is not norms[-1])
    return replace(branch, body=body, tail=branch.tail.sharing(norms[-1]))


def common_owner(nodes: Iterable[fx.Node]) -> str:
    """Return the path of the smallest module whose forward, with what it calls, issued all."""
    paths = [owner(n).split(".") if owner(n) else [] for n in nodes if n.op != "get_attr"]
    return ".".join(common_path(paths))


def common_path(paths: list[list[str]]) -> list[str]:
    """Return the parts that all dotted paths begin with."""
    together = zip(*paths, strict=False)
    return [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, together)]


def conv_of(traced: Trace, node: fx.Node) -> _ConvNd | None:
    """Return the convolution that a node calls, or None."""
    module = traced.module(node)
    return module if isinstance(module, _ConvNd) else None


def layer_of(traced: Trace, node: fx.Node) -> _ConvNd | nn.Linear | None:
    """Return the convolution or linear layer that a node calls, or None."""
    module = traced.module(node)
    return module if isinstance(module, _ConvNd | nn.Linear) else None


def analyse_region(
    traced: Trace,
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
    context = mark_context(region, {fork, *region})
    tail = find_tail(region, end, rules)
    after = {*tail.consumers, *tail.shared_out, *tail.post}
    inside = [n for n in region if n not in after]
    hidden = _follow(traced, inside, tail)
    own = hidden.split | set(hidden.reducers) | set(tail.consumers) | set(tail.shared_out)
    body = tuple(n for n in region if n in own)
    squeezed = tuple(n for n in region if n in hidden.squeezed)
    running = [n for n in inside if n not in own and n not in hidden.squeezed]
    trunk = tuple(n for n in running if not is_size(n) and not is_constant(n))
    if attends(trunk):
        raise NotSplittable(HEADS)
    _check_images(rules, (*trunk, *body, *squeezed, *tail.post))
    place = _channel_place(traced, fork, region)
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
        kind=_kind(traced, rules, trunk, hidden, tail, body),
        channel_dim=place[0],
        channels=place[1],
        shared_trunk=bool(layers),
    )


def _follow(traced: Trace, inside: Sequence[fx.Node], tail: Tail) -> Hidden:
    """Follow the hidden channels; what two sub-blocks cannot share out is computed whole."""
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
    """Return what cuts a tensor of the model that the tail reads as it is."""
    constants = {n for node in tail.shared_out for n in node.all_input_nodes if is_constant(n)}
    whole = {parameter_behind(n) for n in constants}
    cut = [c for c in hidden.parameters if parameter_behind(c) in whole]
    return {reader for c in cut for reader in c.users if reader in hidden.split}


def _check_rules(rules: Mapping[fx.Node, Rule]) -> None:
    for node, known in rules.items():
        if known.refusal:
            raise NotSplittable(f"{node.name} {known.refusal}")


def _check_images(rules: Mapping[fx.Node, Rule], nodes: Sequence[fx.Node]) -> None:
    for node in nodes:
        if not rules[node].per_image:
            raise NotSplittable(
                f"{node.name} ({called(node)}) is not known to treat every image by itself"
            )


def _channel_place(traced: Trace, fork: fx.Node, region: Sequence[fx.Node]) -> tuple[int, int]:
    """Return in which dimension the fork's channels stand, and how many there are.

    Raises:
        NotSplittable: if the first layers do not tell.
    """
    last = {fork: -1}
    """Values that are the fork but for order -> which of its dimensions is their last one."""
    for node in region:
        read = [n for n in tensor_inputs(node) if n in last]
        if not read:
            continue
        found = _channels_read(traced, node)
        if found is not None:
            dim, count = found
            return (last[read[0]] if dim == -1 else dim), count
        order = permutation(node) if op_name(node) == "permute" else None
        if order is not None and read[0] is fork:
            last[node] = 1 if order[-1] == 1 else -1
        elif node.target in traced.passing or (
            rule(traced, node).role is Role.CHANNELWISE and op_name(node) not in _MOVING
        ):
            last[node] = last[read[0]]
    made = channel_count(traced, fork)
    if made is None:
        raise NotSplittable("its first layers do not tell how many channels its input has")
    return channel_dim(traced, fork), made


def _channels_of_scale(traced: Trace, node: fx.Node) -> tuple[int, int] | None:
    """Return the same for an operation with a tensor of the model that has one value a channel."""
    for source in node.all_input_nodes:
        value = constant_value(traced, source) if is_constant(source) else None
        if value is not None and value.numel() > 1 and value.numel() == max(value.shape):
            behind = value.dim() - 1 - list(value.shape).index(value.numel())
            return (-1 if behind == 0 else 1), value.numel()
    return None


def _channels_read(traced: Trace, node: fx.Node) -> tuple[int, int] | None:
    """Return where an operation wants its input's channels, and how many it wants."""
    module = traced.module(node)
    if isinstance(module, _ConvNd):
        return 1, module.in_channels
    if isinstance(module, nn.Linear):
        return -1, module.in_features
    if isinstance(module, nn.LayerNorm):
        return (-1, module.normalized_shape[0]) if len(module.normalized_shape) == 1 else None
    features = getattr(module, "num_features", None) or getattr(module, "num_channels", None)
    if type(features) is int:
        return 1, features
    if op_name(node) in ELEMENTWISE:
        return _channels_of_scale(traced, node)
    if op_name(node).endswith("norm"):
        constants = [parameter_behind(n) for n in node.all_input_nodes if is_constant(n)]
        sizes = {traced.attribute(n).numel() for n in constants}
        if len(sizes) == 1:
            at_front = "group_norm" in op_name(node) or "batch_norm" in op_name(node)
            return (1 if at_front else -1), sizes.pop()
    return None


_MOVING = ("permute", "transpose", "flatten", "view", "reshape", "getitem", "unsqueeze", "squeeze")


def _kind(
    traced: Trace,
    rules: Mapping[fx.Node, Rule],
    trunk: Sequence[fx.Node],
    hidden: Hidden,
    tail: Tail,
    body: Sequence[fx.Node],
) -> str:
    layers = [layer for n in trunk if (layer := layer_of(traced, n))]
    grouped = [c for n in body if rules[n].role is Role.GROUPED and (c := conv_of(traced, n))]
    first = [layer for n in hidden.producers if (layer := layer_of(traced, n))]
    last = [layer for n in tail.consumers if (layer := layer_of(traced, n))]
    if len(last) > 1 or (layers and len(layers) > 1):
        return "residual"
    if layers:
        return _kind_with_trunk(traced, rules, trunk, hidden, body, layers[0], last[0])
    if not first:
        return "depthwise-separable" if grouped else "residual"
    if isinstance(last[0], nn.Linear) or (_is_pointwise(*first, *last) and not grouped):
        return "mlp"
    if grouped:
        depthwise = all(conv.groups == conv.in_channels for conv in grouped)
        return "inverted-residual" if depthwise else "grouped-bottleneck"
    fused = _is_pointwise(*last) and not _is_pointwise(first[0])
    return "fused-inverted-residual" if fused else "basic"


def _kind_with_trunk(
    traced: Trace,
    rules: Mapping[fx.Node, Rule],
    trunk: Sequence[fx.Node],
    hidden: Hidden,
    body: Sequence[fx.Node],
    first: _ConvNd | nn.Linear,
    last: _ConvNd | nn.Linear,
) -> str:
    if isinstance(first, _ConvNd) and first.groups == first.in_channels > 1:
        return "convnext" if hidden.producers else "depthwise-separable"
    plain = is_plain_conv(first) and is_plain_conv(last) and len(hidden.producers) == 1
    plain = plain and all(is_plain_conv(traced.module(n)) for n in hidden.producers)
    straight = not hidden.entries and not hidden.reducers and _is_straight(rules, trunk)
    norms_by_batch = all(
        rules[n].role in (Role.NORM, Role.CHANNELWISE, Role.DENSE) for n in (*trunk, *body)
    )
    return "bottleneck" if plain and straight and norms_by_batch else "residual"


def _is_pointwise(*layers: _ConvNd | nn.Linear) -> bool:
    return all(isinstance(m, nn.Linear) or set(m.kernel_size) == {1} for m in layers)


def _is_straight(rules: Mapping[fx.Node, Rule], trunk: Sequence[fx.Node]) -> bool:
    """Return whether the trunk is one dense convolution among channel-wise operations."""
    known = all(rules[n].role is not Role.OTHER for n in trunk)
    dense = [n for n in trunk if rules[n].role in (Role.DENSE, Role.GROUPED)]
    single = all(len(tensor_inputs(n)) == 1 and len(n.users) == 1 for n in trunk)
    return known and single and len(dense) == 1 and rules[dense[0]].role is Role.DENSE
