"""Follow channels through a branch: trunk → producers → channel-wise operations → consumer → tail.

From this one description follow the splits, the inheritance of weights and the FLOPs table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx
from torch.nn.modules.conv import _ConvNd

from .ops import Role, Rule, rule, tensor_inputs
from .trace import Trace, owner


class NotSplittable(Exception):
    """Why no split fits a branch; becomes the block's `reason`."""


@dataclass(frozen=True, eq=False)
class Branch:
    """The parts of a residual branch, as nodes of the traced graph.

    Attributes:
        fork: what the branch and the shortcut both read.
        trunk: from the fork to the producers; shared by the sub-blocks.
        body: producers, channel-wise operations, consumer and tail norm; what is split.
        post: runs once, on the gated sum; maps zeros to zeros.
        producers: dense convolutions that make the hidden channels.
        consumer: the dense convolution that reads them.
        units: how many parts of the hidden channels are independent of each other.
        output: the sum, or the last node of a chain without one.
        shortcut: the sum's other operand; None for a chain.
        is_bottleneck: dense 1×1 → k×k → 1×1, which the paper splits by matched widths.
        kind: the block's kind.
        hidden: how many hidden channels there are.
    """

    fork: fx.Node
    trunk: tuple[fx.Node, ...]
    body: tuple[fx.Node, ...]
    post: tuple[fx.Node, ...]
    producers: tuple[fx.Node, ...]
    consumer: fx.Node
    units: int
    output: fx.Node
    shortcut: fx.Node | None
    is_bottleneck: bool
    kind: str
    hidden: int

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All nodes that the multi-path block replaces, the sum aside."""
        return (*self.trunk, *self.body, *self.post)

    @property
    def enclosing(self) -> str:
        """Path of the smallest module that encloses the branch and its sum."""
        return common_owner([*self.nodes, self.output])

    @property
    def exact_split(self) -> str:
        """The split that keeps the function."""
        return "shared-trunk" if self.kind in ("bottleneck", "residual") else "hidden-channel"


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
    if node.op != "call_module":
        return None
    module = traced.module(node)
    return module if isinstance(module, _ConvNd) else None


def analyse_region(
    traced: Trace,
    fork: fx.Node,
    region: list[fx.Node],
    end: fx.Node,
    output: fx.Node,
    shortcut: fx.Node,
) -> Branch:
    """Describe the branch of a residual block.

    Raises:
        NotSplittable: with the reason, if no split fits.
    """
    rules = {node: rule(traced, node) for node in region}
    for node, known in rules.items():
        if known.refusal:
            raise NotSplittable(f"{node.name} {known.refusal}")
    consumer, tail = _consumer(rules, end, fork)
    producers, hidden = _producers(traced, rules, consumer, fork)
    body = {*producers, *hidden, consumer}
    trunk = [n for n in region if n not in body and n not in tail]
    _check_trunk(trunk, producers, hidden, rules)
    norms, post = _share_out(rules, tail)
    ordered = [n for n in region if n in body]
    return _assemble(traced, rules, fork, trunk, ordered, norms, post, consumer, output, shortcut)


def analyse_chain(traced: Trace, consumer: fx.Node) -> Branch | None:
    """Describe expand → depthwise → project (→ norm) that ends without a sum; None if it is not."""
    last = conv_of(traced, consumer)
    if last is None or rule(traced, consumer).role is not Role.DENSE:
        return None
    backwards = [consumer]
    while True:
        inputs = tensor_inputs(backwards[-1])
        if len(inputs) != 1 or len(inputs[0].users) != 1 or inputs[0].op == "placeholder":
            return None
        backwards.append(inputs[0])
        known = rule(traced, inputs[0])
        if known.role is Role.DENSE:
            break
        if known.role is Role.OTHER:
            return None
    convs = [c for n in reversed(backwards) if (c := conv_of(traced, n)) is not None]
    depthwise = any(c.groups == c.in_channels > 1 for c in convs)
    first = convs[0]
    if not (depthwise and first.out_channels > first.in_channels and _is_pointwise(first, last)):
        return None
    if last.out_channels >= last.in_channels:
        return None
    body = backwards[::-1]
    norms = _trailing_norm(traced, consumer)
    fork = tensor_inputs(body[0])[0]
    rules = {node: rule(traced, node) for node in (*body, *norms)}
    output = (norms or [consumer])[-1]
    try:
        return _assemble(traced, rules, fork, [], body, norms, [], consumer, output, None)
    except NotSplittable:
        return None


NEARBY = 16
"""How many operations back from a projection its depthwise convolution is looked for."""


def chain_miss(traced: Trace, consumer: fx.Node) -> tuple[str, list[fx.Node]] | None:
    """Say why a projection after a depthwise convolution ends no block, and where it stands.

    None if it is no near miss.
    """
    last = conv_of(traced, consumer)
    if last is None or last.groups > 1 or not _is_pointwise(last):
        return None
    joined: fx.Node | None = None
    nearby, stack = [consumer], tensor_inputs(consumer)
    while stack and len(nearby) < NEARBY:
        node = stack.pop(0)
        conv = conv_of(traced, node)
        if conv is not None and conv.groups == conv.in_channels > 1:
            reason = _expansion_miss(traced, node)
            if joined is not None:
                reason = f"squeeze-excite or the like: {joined.name} joins all hidden channels"
            return None if reason is None else (reason, [*nearby, node])
        if conv is None:
            nearby.append(node)
            joined = node if len(tensor_inputs(node)) > 1 else joined
            stack += tensor_inputs(node)
    return None


def _expansion_miss(traced: Trace, depthwise: fx.Node) -> str | None:
    node = depthwise
    while len(inputs := tensor_inputs(node)) == 1 and rule(traced, inputs[0]).role in _KEEPING:
        node = inputs[0]
    before = conv_of(traced, inputs[0]) if len(inputs) == 1 else None
    if before is None or not _is_pointwise(before) or before.out_channels <= before.in_channels:
        return "its hidden channels are the chain's own input (no 1×1 expansion)"
    return None


_KEEPING = (Role.NORM, Role.CHANNELWISE)


def _is_pointwise(*convs: _ConvNd) -> bool:
    return all(set(c.kernel_size) == {1} for c in convs)


def _trailing_norm(traced: Trace, consumer: fx.Node) -> list[fx.Node]:
    users = list(consumer.users)
    known = rule(traced, users[0]) if len(users) == 1 else None
    return users if known is not None and known.role is Role.NORM and known.linear else []


def _consumer(
    rules: dict[fx.Node, Rule], end: fx.Node, fork: fx.Node
) -> tuple[fx.Node, list[fx.Node]]:
    """Walk back from the end to the last convolution; what follows it is the tail."""
    tail: list[fx.Node] = []
    node = end
    while rules[node].role is not Role.DENSE:
        if rules[node].role is Role.OTHER:
            raise NotSplittable(f"{node.name} ({_what(node)}) is no operation that can be split")
        inputs = tensor_inputs(node)
        if len(inputs) != 1:
            raise NotSplittable(f"{node.name} rescales the branch's output (attention)")
        if rules[node].role is Role.GROUPED:
            raise NotSplittable(f"the branch ends in a grouped convolution ({node.name})")
        if inputs[0] is fork:
            raise NotSplittable("the branch holds no dense convolution")
        tail.append(node)
        node = inputs[0]
    return node, tail[::-1]


def _producers(
    traced: Trace, rules: dict[fx.Node, Rule], consumer: fx.Node, fork: fx.Node
) -> tuple[list[fx.Node], list[fx.Node]]:
    """Walk back from the consumer over channel-wise operations to where the channels are made."""
    producers: dict[fx.Node, None] = {}
    hidden: dict[fx.Node, None] = {}
    stack = tensor_inputs(consumer)
    while stack:
        node = stack.pop()
        if node in producers or node in hidden:
            continue
        if node is fork:
            raise NotSplittable("its hidden channels are the block's own input (no expansion)")
        if rules[node].role is Role.DENSE:
            producers[node] = None
            continue
        _check_hidden(traced, rules, node)
        hidden[node] = None
        stack += tensor_inputs(node)
    return list(producers), list(hidden)


def _check_hidden(traced: Trace, rules: dict[fx.Node, Rule], node: fx.Node) -> None:
    if rules[node].role is Role.OTHER:
        raise NotSplittable(f"{node.name} ({_what(node)}) is not known to keep channels apart")
    reads = [n for n in node.all_input_nodes if n.op == "get_attr"]
    if reads and rules[node].role is not Role.NORM:
        raise NotSplittable(f"{node.name} applies a parameter ({reads[0].target}) to the channels")


def _what(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else node.target.__name__


def _check_trunk(
    trunk: list[fx.Node],
    producers: list[fx.Node],
    hidden: list[fx.Node],
    rules: dict[fx.Node, Rule],
) -> None:
    mixed = {*producers, *hidden}
    for node in trunk:
        if mixed & set(node.all_input_nodes):
            raise NotSplittable(
                f"squeeze-excite or the like: {node.name} reads all hidden channels at once"
            )
        if not rules[node].per_image:
            raise NotSplittable(
                f"{node.name} ({_what(node)}) is not known to treat every image by itself"
            )
    entries = {n for producer in producers for n in tensor_inputs(producer)}
    if len(entries) != 1:
        raise NotSplittable("its hidden channels are made from more than one input")
    if trunk and entries != {trunk[-1]}:
        raise NotSplittable("its first layers feed more than one path")


def _share_out(
    rules: dict[fx.Node, Rule], tail: list[fx.Node]
) -> tuple[list[fx.Node], list[fx.Node]]:
    """Cut the tail into what each sub-block gets (to the last norm) and what runs on the sum."""
    cut = max((i + 1 for i, n in enumerate(tail) if rules[n].role is Role.NORM), default=0)
    norms, post = tail[:cut], tail[cut:]
    for node in norms:
        if not rules[node].linear:
            raise NotSplittable(f"{node.name} is not linear, so a sum cannot be shared out over it")
    if sum(rules[n].role is Role.NORM for n in norms) > 1:
        raise NotSplittable("more than one norm follows the last convolution")
    for node in post:
        if not rules[node].zero:
            raise NotSplittable(f"{node.name} maps a skipped branch's zeros to something else")
    return norms, post


def _assemble(
    traced: Trace,
    rules: dict[fx.Node, Rule],
    fork: fx.Node,
    trunk: list[fx.Node],
    body: list[fx.Node],
    norms: list[fx.Node],
    post: list[fx.Node],
    consumer: fx.Node,
    output: fx.Node,
    shortcut: fx.Node | None,
) -> Branch:
    producers = tuple(n for n in body if rules[n].role is Role.DENSE and n is not consumer)
    grouped = [conv for n in body if rules[n].role is Role.GROUPED and (conv := conv_of(traced, n))]
    widths = {c.out_channels for n in producers if (c := conv_of(traced, n))}
    if len(widths) != 1:
        raise NotSplittable("its producers make different numbers of channels")
    hidden = widths.pop()
    trunk_convs = [conv for n in trunk if (conv := conv_of(traced, n))]
    kind = _kind(traced, rules, trunk, trunk_convs, grouped, producers, consumer)
    return Branch(
        fork=fork,
        trunk=tuple(trunk),
        body=(*body, *norms),
        post=tuple(post),
        producers=producers,
        consumer=consumer,
        units=math.gcd(hidden, *(conv.groups for conv in grouped)),
        output=output,
        shortcut=shortcut,
        is_bottleneck=kind == "bottleneck",
        kind=kind,
        hidden=hidden,
    )


def _kind(
    traced: Trace,
    rules: dict[fx.Node, Rule],
    trunk: list[fx.Node],
    trunk_convs: list[_ConvNd],
    grouped: list[_ConvNd],
    producers: Iterable[fx.Node],
    consumer: fx.Node,
) -> str:
    first = conv_of(traced, next(iter(producers)))
    last = conv_of(traced, consumer)
    if first is None or last is None:
        return "residual"
    if trunk_convs:
        plain = len(trunk_convs) == 1 and not grouped and _is_straight(rules, trunk)
        return "bottleneck" if plain else "residual"
    if grouped:
        depthwise = all(conv.groups == conv.in_channels for conv in grouped)
        return "inverted-residual" if depthwise else "grouped-bottleneck"
    fused = _is_pointwise(last) and not _is_pointwise(first)
    return "fused-inverted-residual" if fused else "basic"


def _is_straight(rules: dict[fx.Node, Rule], trunk: list[fx.Node]) -> bool:
    """Return whether the trunk is one dense convolution among channel-wise operations."""
    known = all(rules[n].role is not Role.OTHER for n in trunk)
    dense = [n for n in trunk if rules[n].role in (Role.DENSE, Role.GROUPED)]
    single = all(len(tensor_inputs(n)) == 1 and len(n.users) == 1 for n in trunk)
    return known and single and len(dense) == 1 and rules[dense[0]].role is Role.DENSE
