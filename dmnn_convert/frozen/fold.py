"""Batch norms of a graph, folded into the convolutions before them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..nn import AnyBatchNorm, scale_and_shift


def fold_norms(root: nn.Module, graph: fx.Graph) -> None:
    """Fold each norm that only reads a convolution which nothing else reads, for evaluation.

    Args:
        root: holds the layers; a convolution that a norm is folded into is replaced by a copy.
        graph: calls them.
    """
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    once = {target for target in calls if calls.count(target) == 1}
    for node in list(graph.nodes):
        before = node.args[0] if node.op == "call_module" and len(node.args) == 1 else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        norm, conv = (root.get_submodule(str(n.target)) for n in (node, before))
        if not {node.target, before.target} <= once or not _fits(conv, norm):
            continue
        parent, _, name = str(before.target).rpartition(".")
        setattr(root.get_submodule(parent), name, _folded(conv, norm))
        node.replace_all_uses_with(before)
        graph.erase_node(node)


def _fits(conv: nn.Module, norm: nn.Module) -> bool:
    plain = isinstance(conv, _ConvNd) and not isinstance(conv, _ConvTransposeNd)
    own = isinstance(norm, AnyBatchNorm) or type(norm).__module__.startswith("torch.nn")
    return plain and own and isinstance(norm, _BatchNorm) and norm.running_var is not None


def _folded(conv: Any, norm: Any) -> nn.Module:
    own: nn.Module = copy.deepcopy(conv)
    scale, shift = (t.to(torch.float64) for t in scale_and_shift(norm))
    weight = conv.weight.detach().double() * scale.view(-1, *(1,) * (conv.weight.dim() - 1))
    bias = shift if conv.bias is None else conv.bias.detach().double() * scale + shift
    own.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    own.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    return own
