"""The nested split: sub-block n adds the n-th share of the channels of every hidden width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import fx, nn

from ..channels import (
    Hidden,
    Mismatch,
    NotSplittable,
    Run,
    follow,
    layer_of,
    nested_runs,
    rule,
    values_read,
)
from ..find import Branch
from ..graph import Role, TracedModel, at_line, is_size
from ..nn import Ends, NestedParts, Shares, depends_on_width
from .importance import by_importance
from .layers import Layers
from .program import Program, as_module, local_name, place, sharing_copy


class _Width(NamedTuple):
    """Hidden channels that are shared out together, and the layers at which they end."""

    hidden: Hidden
    consumers: tuple[fx.Node, ...]

    @property
    def mixers(self) -> tuple[fx.Node, ...]:
        """The dense layers that read them."""
        return (*self.consumers, *self.hidden.reducers)


def nest(traced: TracedModel, branch: Branch, N: int) -> NestedParts:
    """Order a branch's hidden channels, the most important first, so that N sub-blocks nest.

    The widths are followed from the branch's end to its beginning: the layers that make the
    channels of one width read those of the one before.

    Raises:
        NotSplittable: with the reason, if the channels before the branch's last layer do not nest.
    """
    widths = list(_widths(traced, branch, N))
    runs: dict[fx.Node, Run] = {}
    for width in widths:
        order = by_importance(traced, *width)
        runs |= nested_runs(traced, width.hidden, N, order)
    return _Builder(traced, branch, widths, runs).parts(N)


# --- the widths ---------------------------------------------------------------------------------


def _widths(traced: TracedModel, branch: Branch, N: int) -> Iterator[_Width]:
    width = _Width(branch.hidden, branch.tail.consumers)
    _check(traced, width, N)
    trunk = list(branch.trunk)
    while True:
        yield width
        made = [p for p in width.hidden.producers if values_read(p)[0] in trunk]
        if not made:
            return
        try:
            width = _Width(follow(traced, trunk, made, set()), tuple(made))
            _check(traced, width, N)
            _check_untied(traced, width)
        except NotSplittable:
            return  # everything before is computed whole
        trunk = [n for n in trunk if n not in width.hidden.split]


def _check(traced: TracedModel, width: _Width, N: int) -> None:
    hidden = width.hidden
    if hidden.entries:
        entry = next(iter(hidden.entries))
        raise NotSplittable(
            f"its sub-blocks take slices of {at_line(entry)}, which is computed whole"
        )
    for node in hidden.reducers:
        if rule(traced, node).role is not Role.DENSE:
            raise NotSplittable(f"{at_line(node)} averages over all hidden channels")
    if hidden.parameters:
        read = next(iter(hidden.parameters))
        raise NotSplittable(f"its hidden channels meet a tensor of the model ({read.name})")
    if hidden.units < N:
        raise NotSplittable(f"{hidden.units} independent hidden channels for {N} sub-blocks")
    nested_runs(traced, hidden, N)


def _check_untied(traced: TracedModel, width: _Width) -> None:
    """Check that nothing else reads the channels of a width, or the layers that are cut."""
    known = {*width.hidden.split, *width.mixers}
    read = {str(node.target).rpartition(".")[0] for node in traced.tensors_read}
    for node in width.hidden.split:
        for user in node.users:
            if user not in known and not is_size(user):
                raise Mismatch(node, f"is also read by {at_line(user)}")
        module = as_module(traced, node)
        if module is None or not any(True for _ in module.parameters()):
            continue
        if traced.call_counts[id(module)] > 1 or str(node.target) in read:
            raise Mismatch(node, "is called more than once, or its tensors are read")


# --- the body -----------------------------------------------------------------------------------


class _Builder:
    def __init__(
        self,
        traced: TracedModel,
        branch: Branch,
        widths: Sequence[_Width],
        runs: dict[fx.Node, Run],
    ) -> None:
        self.traced, self.branch, self.runs = traced, branch, runs
        self.hidden = _together(width.hidden for width in widths)
        self.mixers = {node for width in widths for node in width.mixers}
        self.layers = Layers(traced, replace(branch, hidden=self.hidden), 1, squeeze_alone=False)
        self.ends: dict[str, Ends] = {}

    def parts(self, N: int) -> NestedParts:
        branch, tail = self.branch, self.branch.tail
        running = {*branch.trunk, *branch.body, *branch.squeezed, *tail.shared_out, *tail.post}
        nodes = [n for n in branch.region if n in running]
        program = Program(self.traced, branch.enclosing, (branch.fork, *branch.context))
        gates = program.graph.placeholder("gates")
        modules = {n: m for n in nodes if (m := self._module(n)) is not None}
        for node in program.writes_outside(nodes):
            if node in modules:
                modules[node].inplace = False  # type: ignore[assignment]
            else:
                program.copy_before(node)
        names = {str(local_name(n, branch.enclosing)).partition(".")[0] for n in modules}
        holder = next(h for h in ("shares", "hidden_shares", "nested_shares") if h not in names)
        shared: dict[fx.Node, fx.Node] = {}

        def read(reader: fx.Node, node: fx.Node) -> fx.Node | None:
            if reader not in self.mixers or node not in self.runs:
                return None
            if node not in shared:
                name = f"{holder}.{len(shared)}"
                layout = self.hidden.layouts[node]
                shares = Shares(self.runs[node].sizes, layout.dim).train(program.result.training)
                place(program.result, name, shares)
                value = program.values[node]
                shared[node] = program.graph.call_module(name, (value, gates))
            return shared[node]

        program.run(nodes, modules, read)
        end = (tail.post or tail.shared_out or tail.consumers)[-1]
        return NestedParts(N, program.finish([end]), self.ends)

    def _module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that the body calls at a node, its channels ordered by share."""
        source = as_module(self.traced, node)
        own = {value: run.channels for value, run in self.runs.items()}
        if source is None or (node not in own and node not in self.mixers):
            return None if source is None else sharing_copy(source)
        module = self.layers.cut(node, own)
        if module is not None and depends_on_width(module):
            rows = self.runs[node].ends if node in self.runs else None
            mixes = node in self.mixers and layer_of(self.traced, node) is not None
            columns = self.runs[values_read(node)[0]].ends if mixes else None
            self._note(local_name(node, self.branch.enclosing), Ends(rows, columns))
        return module

    def _note(self, name: str, ends: Ends) -> None:
        if self.ends.setdefault(name, ends) != ends:
            raise NotSplittable(f"{name} is called on hidden channels of two widths")


def _together(parts: Iterator[Hidden]) -> Hidden:
    whole = Hidden()
    for hidden in parts:
        whole.layouts |= hidden.layouts
        whole.producers |= hidden.producers
        whole.reducers |= hidden.reducers
        whole.sources |= hidden.sources
    return whole
