"""The modules of a multi-path block: trunk, sub-blocks, and the tail on the gated sums."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from ..channels import (
    NotSplittable,
    late_nodes,
    layer_of,
    op_name,
    parameter_behind,
    partition,
    rule,
    values_read,
)
from ..find import Branch
from ..graph import Role, TracedModel
from ..nn import Parts, SqueezingSubBlock
from .importance import by_importance
from .layers import Channels, Layers
from .matched import Narrower
from .program import Program, as_module, local_name, sharing_copy
from .slices import activation_of, cut_longest


def split_block(
    traced: TracedModel,
    branch: Branch,
    N: int,
    split: str,
    widths: tuple[int, int] | None,
    order: str = "source",
) -> Parts:
    """Cut a branch into N sub-blocks that inherit its weights.

    Args:
        traced: the model that holds the branch.
        branch: the branch to cut.
        N: number of sub-blocks.
        split: one of the branch's two splits.
        widths: (Ĉ1, Ĉ2) for the matched-width split.
        order: "source", or "importance": the first sub-block gets the most important channels.

    Raises:
        NotSplittable: if fewer independent channels than sub-blocks remain.
    """
    reason = too_narrow(branch, N)
    if reason is not None:
        raise NotSplittable(reason)
    alone = split == "own-squeeze"
    cutter = _Cutter(traced, branch, N, order == "importance", alone)
    if split == "matched-width" and widths is not None:
        return cutter.matched(widths)
    return cutter.own_squeeze() if alone else cutter.exact()


def too_narrow(branch: Branch, N: int) -> str | None:
    """Return why a branch cannot be cut into N sub-blocks; None if it can."""
    if branch.units >= N:
        return None
    groups = f" in {branch.units} independent groups" if branch.units < branch.width else ""
    return f"{branch.width} hidden channels{groups}, fewer than {N} sub-blocks"


class _Cutter:
    def __init__(
        self, traced: TracedModel, branch: Branch, N: int, ordered: bool, alone: bool
    ) -> None:
        self.traced, self.branch, self.N, self.ordered = traced, branch, N, ordered
        self.hidden, self.tail = branch.hidden, branch.tail
        self.enclosing = branch.enclosing
        self.weights: dict[str, int] = {}
        self.layers = Layers(traced, branch, N, squeeze_alone=alone)

    # --- the three splits -----------------------------------------------------------------------

    def exact(self) -> Parts:
        """Share out the hidden channels; sums over sub-blocks keep the function."""
        body = self.branch.body
        late = late_nodes(self.hidden, body)
        inner = self._outside((*body, *self.branch.squeezed))
        trunk = self._trunk(self.branch.trunk, inner)
        shares = self._shares()
        if not late:
            return self._parts([self._sub_block(body, inner, own) for own in shares], trunk)
        summed = tuple(self.hidden.reducers)
        read = {value for node in late for value in values_read(node)}
        squeezed = tuple(n for n in (*summed, *self.branch.squeezed) if n in read)
        squeeze = self._whole(self.branch.squeezed, (*summed, *inner), squeezed)
        sub_blocks = [self._squeezing(late, inner, squeezed, own) for own in shares]
        return self._parts(sub_blocks, trunk, squeeze)

    def own_squeeze(self) -> Parts:
        """Share out the hidden channels; each sub-block squeezes only its own."""
        wanted = {*self.branch.body, *self.branch.squeezed}
        nodes = [n for n in self.branch.region if n in wanted]
        inner = self._outside(nodes)
        trunk = self._trunk(self.branch.trunk, inner)
        shares = self._shares()
        return self._parts([self._sub_block(nodes, inner, own) for own in shares], trunk)

    def matched(self, widths: tuple[int, int]) -> Parts:
        """Make N narrower bottlenecks of the channels between which the most energy flows."""
        narrower = Narrower(self.traced, self.branch, self.N, widths, ordered=self.ordered)
        inner = (narrower.shared[-1] if narrower.shared else self.branch.fork,)
        trunk = self._trunk(narrower.shared, inner)
        sub_blocks = []
        for n in range(self.N):
            sub_block = self._sub_block(narrower.layers, inner, narrower.channels(n))
            narrower.compensate(sub_block, n)
            sub_blocks.append(sub_block)
        return self._parts(sub_blocks, trunk)

    def _shares(self) -> list[dict[fx.Node, Tensor]]:
        order = None
        if self.ordered:
            order = by_importance(self.traced, self.hidden, self.tail.consumers)
        return partition(self.traced, self.hidden, self.N, order)

    # --- sub-blocks -----------------------------------------------------------------------------

    def _sub_block(
        self, nodes: Sequence[fx.Node], inner: Sequence[fx.Node], own: Channels
    ) -> nn.Module:
        program = self._program(inner)
        self._run(program, nodes, own, "sub_blocks.0")
        return program.finish([self._end()])

    def _program(self, inputs: Sequence[fx.Node]) -> Program:
        return Program(self.traced, self.enclosing, (*inputs, *self.branch.context))

    def _end(self) -> fx.Node:
        """Return the value that is summed over the sub-blocks."""
        return (self.tail.shared_out or self.tail.consumers)[-1]

    def _squeezing(
        self,
        late: set[fx.Node],
        inner: Sequence[fx.Node],
        squeezed: Sequence[fx.Node],
        own: Channels,
    ) -> nn.Module:
        """Make a sub-block that waits, half-way, for the sums over all that run."""
        before = [n for n in self.branch.body if n not in late]
        after = [n for n in self.branch.body if n in late]
        known = {*before, *inner} - {*squeezed}
        carried = tuple({v: None for n in after for v in values_read(n) if v in known})
        first = self._program(inner)
        self._run(first, before, own, "sub_blocks.0.squeeze")
        second = self._program((*carried, *squeezed))
        self._run(second, after, own, "sub_blocks.0.excite")
        sums = tuple(self.hidden.reducers)
        return SqueezingSubBlock(
            first.finish((*sums, *carried)), second.finish([self._end()]), len(sums)
        )

    def _run(self, program: Program, nodes: Sequence[fx.Node], own: Channels, part: str) -> None:
        modules = {n: m for n in nodes if (m := self.layers.cut(n, own)) is not None}
        self._note_weights(nodes, part)
        for node in program.writes_outside(nodes):
            if node in modules:
                modules[node].inplace = False  # type: ignore[assignment]
            else:
                program.copy_before(node)
        narrowed: dict[fx.Node, fx.Node] = {}

        def read(reader: fx.Node, node: fx.Node) -> fx.Node | None:
            # A producer reads a whole value, even if others take a part of it.
            if node not in self.hidden.entries or reader in self.hidden.producers:
                return None
            if node not in narrowed:
                narrowed[node] = program.narrow(node, self.hidden.layouts[node], own[node])
            return narrowed[node]

        def constant(node: fx.Node, value: Any) -> Any:
            channels = self._constant_channels(node, own)
            return copy.deepcopy(value) if channels is None else cut_longest(value, channels)

        program.run(nodes, modules, read, constant)
        for node in nodes:
            if self.branch.squeezed and node in self.hidden.reducers and op_name(node) == "mean":
                # The sum of these is to be the mean over all channels.
                source = values_read(node)[0]
                program.scale(node, len(own[source]) / self.hidden.layouts[source].count)

    def _constant_channels(self, node: fx.Node, own: Channels) -> Tensor | None:
        """Return which entries of a tensor of the model a sub-block needs; None for all."""
        for constant in self.hidden.parameters:
            if parameter_behind(constant) is node:
                reader = next(r for r in constant.users if r in self.hidden.split)
                return own[reader]
        return None

    def _note_weights(self, nodes: Sequence[fx.Node], part: str) -> None:
        for node in nodes:
            layer = layer_of(self.traced, node)
            if layer is not None:
                name = local_name(node, self.enclosing)
                self.weights[f"{part}.{name}"] = layer.weight.numel()

    # --- what runs once -------------------------------------------------------------------------

    def _outside(self, nodes: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
        """Return the values of the trunk and the fork that nodes read, in graph order."""
        read = {value for node in nodes for value in values_read(node)}
        return tuple(n for n in (self.branch.fork, *self.branch.trunk) if n in read)

    def _trunk(self, nodes: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> nn.Module | None:
        if tuple(outputs) == (self.branch.fork,):
            return None
        return self._whole(nodes, (self.branch.fork,), outputs)

    def _whole(
        self,
        nodes: Sequence[fx.Node],
        inputs: Sequence[fx.Node],
        outputs: Sequence[fx.Node],
    ) -> nn.Module:
        """Return a module of unchanged layers; parameters are the model's own."""
        modules = {n: sharing_copy(m) for n in nodes if (m := as_module(self.traced, n))}
        norm_act = self.tail.norm_act
        if norm_act is not None and norm_act in modules:
            modules[norm_act] = activation_of(modules[norm_act])
        program = self._program(inputs)
        program.run(nodes, modules)
        return program.finish(outputs)

    def _shared_norm(self) -> nn.Module | None:
        norm = self.tail.shared_norm
        return None if norm is None else self._whole((norm,), (self._end(),), (norm,))

    def _post(self) -> nn.Module | None:
        tail = self.tail
        if tail.norm_act is None and not tail.post:
            return None
        last = tail.shared_norm or self._end()
        junction = last if tail.norm_act is None else values_read(tail.norm_act)[0]
        nodes = tail.post if tail.norm_act is None else (tail.norm_act, *tail.post)
        return self._whole(nodes, (junction,), (nodes[-1],))

    def _parts(
        self,
        sub_blocks: Sequence[nn.Module],
        trunk: nn.Module | None,
        squeeze: nn.Module | None = None,
    ) -> Parts:
        return Parts(
            sub_blocks=tuple(sub_blocks),
            trunk=trunk,
            squeeze=squeeze,
            shared_norm=self._shared_norm(),
            post=self._post(),
            post_keeps_zeros=self.tail.keeps_zeros,
            tail_norm=self._tail_norm("excite." if squeeze is not None else ""),
            dense_weights=self.weights,
        )

    def _tail_norm(self, prefix: str) -> str | None:
        if self.tail.shared_norm is not None:
            return local_name(self.tail.shared_norm, self.enclosing)
        norms = [n for n in self.tail.shared_out if rule(self.traced, n).role is Role.NORM]
        return prefix + local_name(norms[0], self.enclosing) if len(norms) == 1 else None
