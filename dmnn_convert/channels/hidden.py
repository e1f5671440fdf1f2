"""The hidden channels of a branch, from the layers that read them back to those that make them.

Each value of a branch is either *split* (every sub-block holds its own channels of it) or *whole*.
From the consumers backwards, operations that keep channels apart stay split as far as that goes:
to dense layers that make the channels (producers), of which a sub-block takes its rows, or to a
whole value, of which it takes its slice (entries). A layer that reads split values and mixes them,
such as the first one of squeeze-excite, is a reducer: each sub-block applies its columns, and the
results are summed. If none of this fits, values are computed whole, in the trunk.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

from torch import fx

from ..graph import (
    Role,
    TracedModel,
    at_line,
    gives_tuple,
    is_constant,
    is_size,
    keeps_dim,
    reduced_dims,
    size_of,
)
from .carry import carried
from .layout import Layout, agree, channel_count, input_layout, is_pooled, output_layout
from .node_rules import rule
from .nodes import conv_of, is_reduction, op_name, values_read
from .not_splittable import NotSplittable


@dataclass
class Hidden:
    """The hidden channels of a branch, as far as they were followed.

    Attributes:
        layouts: split values -> how they hold the channels; entries are among them.
        parameters: tensors of the model with one entry per channel.
        producers: dense layers that make the channels.
        entries: whole values that sub-blocks take slices of.
        reducers: layers whose results are summed over the sub-blocks.
        squeezed: whole values that are computed from those sums.
        sources: split values -> the split values that they are computed from.
        limits: the most parts whose channels stay apart (groups).
    """

    layouts: dict[fx.Node, Layout] = field(default_factory=dict)
    parameters: dict[fx.Node, None] = field(default_factory=dict)
    producers: dict[fx.Node, None] = field(default_factory=dict)
    entries: dict[fx.Node, None] = field(default_factory=dict)
    reducers: dict[fx.Node, None] = field(default_factory=dict)
    squeezed: set[fx.Node] = field(default_factory=set)
    sources: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    limits: list[int] = field(default_factory=list)

    def copy(self) -> Hidden:
        """Return a copy that can be changed independently."""
        return Hidden(**{f.name: copy.copy(getattr(self, f.name)) for f in fields(self)})

    @property
    def split(self) -> set[fx.Node]:
        """Operations that each sub-block runs on its own channels."""
        return set(self.layouts) - set(self.entries)

    @property
    def units(self) -> int:
        """Number of independent parts of the hidden channels."""
        made = (self.layouts[n] for n in (*self.producers, *self.entries))
        return math.gcd(*(lay.count // lay.segments for lay in made), *self.limits)


class _Conflict(Exception):
    """Some values must be computed whole."""

    def __init__(self, nodes: Iterable[fx.Node]) -> None:
        self.nodes = set(nodes)


def follow(
    traced: TracedModel,
    inside: Sequence[fx.Node],
    consumers: Sequence[fx.Node],
    whole: set[fx.Node],
) -> Hidden:
    """Follow the channels that `consumers` read back through the nodes `inside` a branch.

    Args:
        traced: the model.
        inside: the branch's nodes, in graph order.
        consumers: the layers to start at.
        whole: values to compute whole; more are added as needed.

    Raises:
        NotSplittable: if the consumers' channels cannot be told apart.
    """
    while True:
        try:
            return _Walk(traced, inside, consumers, whole).hidden
        except _Conflict as conflict:
            if conflict.nodes <= whole:
                raise NotSplittable("its hidden channels cannot be told apart") from None
            whole |= conflict.nodes


class _Walk:
    def __init__(
        self,
        traced: TracedModel,
        inside: Sequence[fx.Node],
        consumers: Sequence[fx.Node],
        whole: set[fx.Node],
    ) -> None:
        self.traced, self.whole = traced, whole
        self.inside = [n for n in inside if not is_size(n) and not is_constant(n)]
        self.among = set(self.inside)
        self.hidden = Hidden()
        for consumer in consumers:
            self._demand_inputs(consumer, consumer)
        self._reduce()
        self._check_levels()

    # --- backwards ------------------------------------------------------------------------------

    def _demand_inputs(self, dense: fx.Node, reader: fx.Node) -> None:
        layout = input_layout(self.traced, dense)
        if layout is None:
            raise NotSplittable(f"{at_line(dense)} is not a plain convolution or linear layer")
        stack = [(values_read(dense)[0], layout, reader)]
        while stack:
            node, wanted, by = stack.pop()
            stack += self._visit(node, wanted, by)

    def _visit(
        self, node: fx.Node, layout: Layout, reader: fx.Node
    ) -> list[tuple[fx.Node, Layout, fx.Node]]:
        known = self.hidden.layouts.get(node)
        if known is not None:
            if not agree(self.traced, node, known, layout):
                raise _Conflict({reader} & self.among or {node})
            return []
        if node not in self.among or node in self.whole:
            self._enter(node, layout, reader)
            return []
        if self._makes(node, layout):
            made = output_layout(self.traced, node)
            alike = made is not None and agree(
                self.traced, node, Layout(made.dim, made.count, layout.segments), layout
            )
            if not alike:
                raise _Conflict([reader] if reader in self.among else [node])
            self.hidden.layouts[node] = layout
            self.hidden.producers[node] = None
            return []
        carry = carried(self.traced, node, layout)
        if carry is None:
            self._enter(node, layout, reader)
            return []
        self.hidden.layouts[node] = layout
        self.hidden.sources[node] = tuple(carry.inputs)
        self.hidden.parameters.update(dict.fromkeys(carry.parameters))
        if carry.units:
            self.hidden.limits.append(carry.units)
        return [(source, wanted, node) for source, wanted in carry.inputs.items()]

    def _makes(self, node: fx.Node, layout: Layout) -> bool:
        """Return whether a node is a layer of which a sub-block may take its rows."""
        role = rule(self.traced, node).role
        conv = conv_of(self.traced, node)
        # Equally many rows of each group, each of which reads its whole run of channels.
        alike = conv is not None and layout.segments % conv.groups == 0
        return role is Role.DENSE or (role is Role.GROUPED and alike)

    def _enter(self, node: fx.Node, layout: Layout, reader: fx.Node) -> None:
        """Let sub-blocks take slices of a whole value."""
        sure = layout.sure or channel_count(self.traced, node) == layout.count
        in_runs = layout.segments > 1 and not layout.by_group
        if in_runs or gives_tuple(node) or not sure:
            if reader not in self.among:
                raise NotSplittable(f"{at_line(node)} is not known to keep channels apart")
            raise _Conflict({reader})
        self.hidden.layouts[node] = layout
        self.hidden.entries[node] = None

    # --- other readers of split values ----------------------------------------------------------

    def _reduce(self) -> None:
        """Make reducers of layers that mix split values; any other reader needs whole values."""
        split = self.hidden.split
        for node in (n for n in self.inside if n in split):  # in order: a conflict ends the search
            sizes = [size_of(i) for i in node.all_input_nodes if is_size(i)]
            if any(of and of[0] in self.hidden.entries and of[1] not in (0, None) for of in sizes):
                raise _Conflict({node})  # the size of a whole value, of which it has a share
        for producer in self.hidden.producers:
            if set(values_read(producer)) & self.hidden.split:
                raise _Conflict({producer})
        tainted: set[fx.Node] = set()
        for node in self.inside:
            split = self.hidden.split
            if node in split or not set(values_read(node)) & (split | tainted):
                continue
            if not self._becomes_reducer(node):
                tainted.add(node)
        tainted -= self.hidden.split
        read = {v for node in tainted for v in values_read(node) if v in self.hidden.split}
        needed = {p for p in self.hidden.producers if set(values_read(p)) & tainted}
        if read or needed:
            raise _Conflict(read | (needed if not read else set()))

    def _becomes_reducer(self, node: fx.Node) -> bool:
        before = self.hidden.copy()
        try:
            if rule(self.traced, node).role is Role.DENSE:
                pooled = is_pooled(self.traced, values_read(node)[0])
                if not pooled:
                    return False
                self._demand_inputs(node, node)
            elif not self._averages_channels(node):
                return False
        except (_Conflict, NotSplittable):
            self.hidden = before
            return False
        if (self.hidden.entries, self.hidden.producers) != (before.entries, before.producers):
            self.hidden = before
            return False
        self.hidden.reducers[node] = None
        return True

    def _averages_channels(self, node: fx.Node) -> bool:
        """Return whether a node is the mean over the channels of a pooled split value (GRN)."""
        source = values_read(node)[0]
        layout = self.hidden.layouts.get(source)
        return (
            op_name(node) == "mean"
            and layout is not None
            and keeps_dim(node)
            and reduced_dims(node) == (layout.dim,)
            and is_reduction(source)
        )

    def _check_levels(self) -> None:
        """Check that no sum over sub-blocks depends on another one."""
        hidden = self.hidden
        late: set[fx.Node] = set()
        for node in self.inside:
            read = set(values_read(node))
            if node in hidden.reducers:
                if read & late:
                    raise _Conflict(read & hidden.split or {node})
                late.add(node)
            elif read & late:
                late.add(node)
        hidden.squeezed = late - hidden.split - set(hidden.reducers)


def late_nodes(hidden: Hidden, nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the nodes of a sub-block that wait for the sums over sub-blocks."""
    summed = set(hidden.squeezed) | set(hidden.reducers)
    late: set[fx.Node] = set()
    for node in nodes:
        if node not in hidden.reducers and set(values_read(node)) & (summed | late):
            late.add(node)
    return late
