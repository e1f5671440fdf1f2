"""A whole network for inference: convolutions packed, blocks prepared, operations fused."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from ..graph import Effects, TracedModel, copied
from ..nn import GateController, MultiPathBlock, NestedBlock, SqueezingSubBlock
from .activation import Activation, activation_at
from .in_place import leave_alone, without_writes
from .layer import Layer, does_nothing, is_plain_conv2d, layer_of, norms, traced, with_norm
from .packed import PackedConv
from .prepared_block import PreparedBlock
from .subsets import forms_of

_ADDITIONS = (operator.add, torch.add, "add")


def packed(model: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy of a model, in evaluation, in the form that inference runs fastest.

    A model that torch.fx cannot follow, that has side effects, or that writes into a tensor which
    others read, stays as it is, except for its multi-path blocks. Hooks are dropped, except those
    of controllers.

    Args:
        model: dense or converted; it stays as it is.
        example: images (B, C, H, W).
    """
    graph = packed_graph(model, example)
    return packed_blocks(model) if graph is None else graph


def packed_graph(model: nn.Module, example: Tensor) -> fx.GraphModule | None:
    """Return a model as `packed` does if a graph shows all that its forward does; else None.

    Arguments that have defaults are fixed to these.
    """
    own = _frozen(model)
    graph = traced(own)
    if graph is None or graph.does_more or not without_writes(graph):
        return None
    for path, module in list(own.named_modules()):
        if isinstance(module, GateController):
            _place(graph.root, path, module)
    packer = _Packer(graph, type(model).__name__)
    packer.note_shapes(example)
    network = packer.pack()
    _prepare_blocks(network, packer.kept)
    return network


def packed_blocks(model: nn.Module) -> nn.Module:
    """Return a copy of a model, in evaluation, whose multi-path blocks alone are prepared."""
    own = _frozen(model)
    _prepare_blocks(own)
    return own


def _frozen(model: nn.Module) -> nn.Module:
    own = copied(model)
    own.eval()
    return own.requires_grad_(False)


def _prepare_blocks(root: nn.Module, done: Collection[nn.Module] = ()) -> None:
    """Prepare the other blocks, without knowing what follows them."""
    for path, module in list(root.named_modules()):
        if isinstance(module, MultiPathBlock) and module not in done:
            _place(root, path, _prepared(module))


def _prepared(block: MultiPathBlock) -> nn.Module:
    if isinstance(block, NestedBlock):
        return block  # its layers are cut for each path
    forms = forms_of(block)
    if forms is not None:
        return PreparedBlock(block.controller, forms)
    for path in _parts(block):
        _place(block, path, _packed_part(block.get_submodule(path)))
    return block


def _parts(block: MultiPathBlock) -> list[str]:
    """Return the paths of a block's modules besides its controller."""
    paths = [name for name, _ in block.named_children() if name not in ("controller", "sub_blocks")]
    for name, sub_block in block.sub_blocks.named_children():
        halves = ("squeeze", "excite") if isinstance(sub_block, SqueezingSubBlock) else ("",)
        paths += [f"sub_blocks.{name}.{half}".rstrip(".") for half in halves]
    return paths


def _packed_part(part: nn.Module) -> nn.Module:
    graph = traced(part)
    if graph is None or not without_writes(graph):
        return part
    return _Packer(graph, type(part).__name__).pack()


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


class PackedSum(nn.Module):
    """A convolution and the residual sum and activation after it."""

    def __init__(self, conv: PackedConv, activation: Activation | None) -> None:
        super().__init__()
        self.conv, self.activation = conv, activation

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Return ``activation(conv(x) + other)``, (B, C, H, W)."""
        return self.conv(x, other, self.activation)  # type: ignore[no-any-return]


class _Packer:
    """Rewrite a traced model's graph."""

    def __init__(self, trace: TracedModel, name: str) -> None:
        self.network = fx.GraphModule(trace.root, trace.graph, name)
        self.graph = self.network.graph
        self.count = 0
        self.taken = {name.partition(".")[0] for name, _ in trace.root.named_modules()}
        self.activated: dict[fx.Node, Activation] = {}
        self.kept: set[nn.Module] = set()
        self.effects = Effects(self._module, frozenset(trace.closed))

    def _module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, which may have been made here."""
        return self.network.get_submodule(str(node.target)) if node.op == "call_module" else None

    def note_shapes(self, example: Tensor) -> None:
        """Find all values' shapes: only sums of maps of one size are fused."""
        with torch.no_grad():
            # In the memory format that the unchanged layers expect; shapes are the same.
            ShapeProp(self.network).propagate(example.contiguous())

    def pack(self) -> fx.GraphModule:
        """Return the rewritten network."""
        for node in list(self.graph.nodes):
            module = self._module(node)
            if is_plain_conv2d(module) and len(node.args) == 1 and not node.kwargs:
                self._pack_conv(node, layer_of(module))
            elif isinstance(module, MultiPathBlock):
                self._prepare_block(node, module)
            elif node.target == "view" and not isinstance(node.args[-1], torch.dtype):
                node.target = "reshape"  # what was contiguous may be channels last here
            elif (activation := activation_at(node, module)) is not None:
                self.activated[node] = activation
        self.graph.eliminate_dead_code()
        self.network.recompile()
        self.network.delete_all_unused_submodules()
        return self.network

    def _pack_conv(self, conv: fx.Node, layer: Layer) -> None:
        last = conv
        while (reader := _only_reader(last)) is not None:
            module = self._module(reader)
            longer = with_norm(layer, module) if isinstance(module, norms()) else None
            if longer is not None:
                layer = longer
            elif not does_nothing(module):
                break
            last = reader
        add = _only_reader(last)
        other = None if add is None or layer.activation else self._summand(add, last)
        if add is not None and other is not None:
            last = add
        after = _only_reader(last)
        activation = None if after is None else activation_at(after, self._module(after))
        if activation is not None and after is not None and layer.activation is None:
            last = after
        else:
            activation = None
        if other is None:
            layer = replace(layer, activation=activation or layer.activation)
            self._replace(last, PackedConv(layer), (conv.args[0],), layer.activation)
        else:
            module = PackedSum(PackedConv(layer), activation)
            self._replace(last, module, (conv.args[0], other), activation)

    def _summand(self, add: fx.Node, term: fx.Node) -> fx.Node | None:
        """Return the other summand of `term` in a sum of two maps of one size; else None."""
        if add.target not in _ADDITIONS or len(add.args) != 2 or add.kwargs:
            return None
        others = [a for a in add.args if a is not term]
        if len(others) != 1 or not isinstance(others[0], fx.Node):
            return None
        shapes = {getattr(n.meta.get("tensor_meta"), "shape", None) for n in (term, others[0])}
        return others[0] if len(shapes) == 1 and None not in shapes else None

    def _prepare_block(self, node: fx.Node, block: MultiPathBlock) -> None:
        prepared = _prepared(block)
        if not isinstance(prepared, PreparedBlock):
            self.kept.add(prepared)
            return
        after = _only_reader(node)
        activation = None if after is None else activation_at(after, self._module(after))
        last = node
        if activation is not None and after is not None:
            prepared.activation, last = activation, after
        shortcut = node.args[1] if len(node.args) > 1 else None
        known = self.activated.get(shortcut) if isinstance(shortcut, fx.Node) else None
        same = activation is None or (
            activation.idempotent and known is not None and known.kind == activation.kind
        )
        prepared.hands_on = same and leave_alone(self.effects, last.users)
        self._replace(last, prepared, node.args, activation)

    def _replace(
        self, last: fx.Node, module: nn.Module, arguments: Any, activation: Activation | None
    ) -> None:
        """Call a new module in place of `last` and of the nodes that only it reads."""
        while hasattr(self.network, f"fast_{self.count}") or f"fast_{self.count}" in self.taken:
            self.count += 1
        name = f"fast_{self.count}"
        self.network.add_module(name, module)
        with self.graph.inserting_before(last):
            new = self.graph.call_module(name, tuple(arguments))
        new.meta = dict(last.meta)
        last.replace_all_uses_with(new)
        if activation is not None:
            self.activated[new] = activation


def _only_reader(node: fx.Node) -> fx.Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and readers[0].op != "output" else None
