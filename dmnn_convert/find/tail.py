"""The tail of a branch: the layers that read the hidden channels, and what follows them.

Walking back from the branch's end over linear operations leads to the consumers; these and the
norm after them are shared out among the sub-blocks; a conversion may ask for one norm instead,
on the gated sum. What comes later (stochastic depth, layer scale, squeeze-excite on the output, a
norm that is not linear) runs once, on the gated sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from ..channels import (
    ATTENTION,
    HEADS,
    MULTIPLICATIONS,
    NotSplittable,
    is_addition,
    op_name,
    values_read,
)
from ..graph import Role, Rule, at_line, is_constant, is_size


@dataclass(frozen=True)
class Tail:
    """The end of a branch.

    Attributes:
        consumers: dense layers that read the hidden channels.
        shared_out: linear operations from the consumers to the norm; each sub-block runs its own.
        norm_act: the last of these, if it is a norm with an activation, which comes after the sum.
        post: operations that run once, on the gated sum.
        keeps_zeros: whether `post` maps zeros to zeros.
        shared_norm: the norm at the branch's end, if it runs once, before `post`, rather than
            being shared out.
    """

    consumers: tuple[fx.Node, ...]
    shared_out: tuple[fx.Node, ...]
    norm_act: fx.Node | None
    post: tuple[fx.Node, ...]
    keeps_zeros: bool
    shared_norm: fx.Node | None = None

    def sharing(self, norm: fx.Node) -> Tail:
        """Return the same tail with the last operation that it shares out, a norm, run once."""
        return replace(
            self,
            shared_out=tuple(node for node in self.shared_out if node is not norm),
            norm_act=None,
            keeps_zeros=self.keeps_zeros or not self.post,
            shared_norm=norm,
        )


def find_tail(
    region: Sequence[fx.Node],
    end: fx.Node,
    rules: Mapping[fx.Node, Rule],
    mixers: Sequence[frozenset[fx.Node]],
) -> Tail:
    """Find the consumers of a region (in graph order) that ends at `end`, and what follows.

    Args:
        region: the branch's nodes.
        end: the last of them.
        rules: of each of them.
        mixers: layers that may be consumers, those to look for first and others.

    Raises:
        NotSplittable: if no sum of such layers makes the branch's output.
    """
    order = {node: i for i, node in enumerate(region)}
    junctions = _bottlenecks(end, order)
    for junction, among in ((j, among) for among in mixers for j in junctions):
        norm_act = junction if _is_norm_act(rules[junction]) else None
        start = values_read(junction)[0] if norm_act else junction
        linear = _linear_walk(start, rules, among) if start in rules else None
        if linear is not None:
            consumers, shared = linear
            if norm_act is None:
                junction, shared = _without_trailing(junction, consumers, shared, rules)
            else:
                shared.append(norm_act)
            return _tail(region, junction, consumers, shared, norm_act, end, rules)
    raise NotSplittable(_why_none(rules))


def _is_norm_act(known: Rule) -> bool:
    return known.role is Role.NORM and not known.linear


def _bottlenecks(end: fx.Node, order: Mapping[fx.Node, int]) -> list[fx.Node]:
    """Return, from the end backwards, the nodes that every path of the branch passes through."""
    found, frontier = [], {end}
    # Once a path reaches the block's input, no earlier node is on all paths.
    while frontier and all(node in order for node in frontier):
        if len(frontier) == 1:
            found.append(next(iter(frontier)))
        last = max(frontier, key=order.__getitem__)
        frontier = (frontier - {last}) | set(values_read(last))
    return found


def _linear_walk(
    start: fx.Node, rules: Mapping[fx.Node, Rule], mixers: frozenset[fx.Node]
) -> tuple[list[fx.Node], list[fx.Node]] | None:
    """Walk back over linear operations; None unless every way ends at one of the mixers."""
    consumers: dict[fx.Node, None] = {}
    passed: dict[fx.Node, None] = {}
    stack = [(start, 0)]
    while stack:
        node, norms = stack.pop()
        known = rules.get(node)
        if known is None or norms > 1:
            return None
        if node in mixers:
            consumers[node] = None
            continue
        inputs = values_read(node)
        if op_name(node) in ("reshape_as", "interpolate", "getitem"):  # others give its size
            inputs = [source for source in inputs if source is node.args[0]]
        summing = is_addition(node) and len(inputs) == 2
        if not inputs or not (known.linear or summing):
            return None
        passed[node] = None
        norms += known.role is Role.NORM
        stack += [(source, norms) for source in inputs]
    if _depends(consumers, {*consumers, *passed}, rules):
        return None
    return list(consumers), list(passed)


def _depends(nodes: Iterable[fx.Node], others: set[fx.Node], rules: Mapping[fx.Node, Rule]) -> bool:
    """Return whether any node is computed from one of the others."""
    stack = [source for node in nodes for source in values_read(node)]
    seen: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node in others:
            return True
        if node in rules and node not in seen:
            seen.add(node)
            stack += values_read(node)
    return False


def _without_trailing(
    junction: fx.Node,
    consumers: Sequence[fx.Node],
    shared: list[fx.Node],
    rules: Mapping[fx.Node, Rule],
) -> tuple[fx.Node, list[fx.Node]]:
    """Move the operations after the last norm behind the sum."""
    while rules[junction].role is not Role.NORM and junction not in consumers:
        inputs = values_read(junction)
        if len(inputs) != 1 or op_name(inputs[0]) == "stack":
            break
        shared.remove(junction)
        junction = inputs[0]
    return junction, shared


def _tail(
    region: Sequence[fx.Node],
    junction: fx.Node,
    consumers: list[fx.Node],
    shared: list[fx.Node],
    norm_act: fx.Node | None,
    end: fx.Node,
    rules: Mapping[fx.Node, Rule],
) -> Tail:
    after = {junction}
    post = []
    for node in region:
        if node not in after and not is_size(node) and set(values_read(node)) & after:
            after.add(node)
            post.append(node)
    for node in post:
        if not rules[node].per_image and node.op != "get_attr":
            raise NotSplittable(f"{at_line(node)} is not known to treat every image by itself")
    return Tail(
        consumers=tuple(sorted(consumers, key=region.index)),
        shared_out=tuple(sorted(shared, key=region.index)),
        norm_act=norm_act,
        post=tuple(post),
        keeps_zeros=norm_act is None and _keeps_zeros(junction, post, end, rules),
    )


def _keeps_zeros(
    junction: fx.Node, post: Sequence[fx.Node], end: fx.Node, rules: Mapping[fx.Node, Rule]
) -> bool:
    zero = {junction}
    for node in post:
        inputs = values_read(node)
        held = [source in zero for source in inputs]
        product = op_name(node) in MULTIPLICATIONS
        if (any(held) if product else all(held)) and (product or rules[node].zero):
            zero.add(node)
    return end in zero


def attends(nodes: Iterable[fx.Node]) -> bool:
    """Return whether operations make up a self-attention."""
    names = [op_name(node) for node in nodes]
    products = sum(name in ("matmul", "bmm", "einsum") for name in names)
    return any(name in ATTENTION for name in names) or (products > 1 and "softmax" in names)


def _why_none(rules: Mapping[fx.Node, Rule]) -> str:
    if attends(rules):
        return HEADS
    unknown = [n for n, known in rules.items() if not known.per_image and not is_constant(n)]
    if any(known.role is Role.DENSE for known in rules.values()):
        what = f" (after {at_line(unknown[-1])})" if unknown else ""
        return f"no convolution or linear layer alone makes the branch's output{what}"
    grouped = [n for n, known in rules.items() if known.role is Role.GROUPED]
    if grouped:
        return f"the branch holds grouped convolutions only: {at_line(grouped[0])}"
    return "the branch holds no dense convolution or linear layer"
