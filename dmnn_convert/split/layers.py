"""The layers of a sub-block: those of the branch, cut to the channels that the sub-block has."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from ..channels import NotSplittable, layer_of, values_read
from ..find import Branch
from ..graph import TracedModel, at_line, copied
from .moments import add_missing_mean
from .program import as_module
from .slices import share_out, slice_channels, slice_columns, slice_rows, without_activation

Channels = Mapping[fx.Node, Tensor]
"""The channels that a sub-block has of each value."""


class Layers:
    """Cut the layers of a branch.

    Args:
        traced: the model that holds the branch.
        branch: whose layers they are.
        N: number of sub-blocks.
        squeeze_alone: whether each sub-block squeezes its own channels, rather than summing up.
    """

    def __init__(self, traced: TracedModel, branch: Branch, N: int, *, squeeze_alone: bool) -> None:
        self.traced, self.N, self.squeeze_alone = traced, N, squeeze_alone
        self.hidden, self.tail = branch.hidden, branch.tail

    def cut(self, node: fx.Node, own: Channels) -> nn.Module | None:
        """Return the module that a sub-block calls at a node, for its channels; None for no module.

        Raises:
            NotSplittable: if it is not known how to cut the node's module.
        """
        source = as_module(self.traced, node)
        if source is None:
            return None
        if node in self.tail.shared_out:
            result = copied(source)
            if node is self.tail.norm_act:
                without_activation(result)
            share_out(result, self.N)
            return result
        if node in self.tail.consumers or node in self.hidden.reducers:
            return self._reader(node, source, own)
        if node not in own:
            return copied(source)
        if not isinstance(source, _ConvNd | nn.Linear):
            return slice_channels(source, own[node], self._count(node))
        if isinstance(source, _ConvNd) and source.groups > 1:
            if node in self.hidden.producers:
                return slice_rows(source, own[node], source.groups)
            width = source.out_channels // source.groups
            return slice_rows(source, own[node], len(own[node]) // width)
        before = values_read(node)[0]
        rows = slice_rows(source, own[node])
        inherits = before in own and before not in self.hidden.entries
        return slice_columns(rows, own[before]) if inherits else rows

    def _reader(self, node: fx.Node, source: nn.Module, own: Channels) -> nn.Module:
        """Keep the columns of a layer whose results are summed over the sub-blocks."""
        if not isinstance(source, _ConvNd | nn.Linear):
            raise NotSplittable(f"{at_line(node)} is not a plain convolution or linear layer")
        kept = own[values_read(node)[0]]
        result = slice_columns(source, kept)
        if node in self.hidden.reducers and self.squeeze_alone:
            add_missing_mean(self.traced, self.hidden, node, result, kept)
        else:
            share_out(result, self.N)
        return result

    def _count(self, node: fx.Node) -> int:
        layer = layer_of(self.traced, node)
        if node in self.hidden.layouts:
            return self.hidden.layouts[node].count
        if isinstance(layer, _ConvNd):
            return layer.out_channels
        return self._count(values_read(node)[0])
