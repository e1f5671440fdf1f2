"""Frozen networks: a level, a row of gates or a found path as a plain network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..evaluation import Evaluation
from ..find import check_attached
from ..frozen import plain_network
from ..graph import copied
from ..nn import check_own_statistics, controllers
from .level import Level, level_path
from .statistics import kept_levels, level_statistics


@torch.inference_mode(mode=False)
def freeze(model: nn.Module, path: Level | Tensor | Evaluation) -> nn.Module:
    """Return the plain network of one path, without gates or controllers.

    The sub-blocks of the path become layers of their joint width, blocks without any are gone, and
    nothing of this package is left inside: the network scripts, exports, quantises and trains like
    any other. Layers keep the names that they had in the source. A module whose forward the
    conversion rewrote becomes a `torch.fx.GraphModule`; the root keeps its class unless it is one.

    If the model keeps norm statistics for the path (`estimate_levels`), the network gets these.

    Args:
        model: a converted model; it stays as it is.
        path: a level in (0, 1], or one by stage; gates (total sub-blocks,); or an evaluation, whose
            most frequent path is taken.

    Returns:
        The network, with the parameters' dtypes and device and the modes of the model.

    Raises:
        ArgumentError: for a model that is not converted, or inside `at_level`, or another kind of
            path.
        GateMismatchError: for a path of another model, or one that no image can take.
        ConversionError: for a model that cannot be copied, as after a backward pass under pruning.

    Example:
        >>> freeze(model, 0.5).block1.conv1
        Conv2d(8, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    if isinstance(path, Evaluation):
        path = path.frozen_path
    gates = path.detach().cpu() if isinstance(path, Tensor) else level_path(model, path)
    bank = kept_levels(model)
    check_attached(model, "freeze")
    if bank is None:
        return plain_network(model, gates)
    check_own_statistics(model, "freeze")
    known = gates.shape == bank.paths.shape[1:] and bank.row(gates) is not None
    statistics = level_statistics(model, gates) if known else {}
    own = copied(model)
    controllers(own)[0].levels = None
    for name, found in statistics.items():
        norm: Any = own.get_submodule(name)
        norm.running_mean, norm.running_var = (t.to(norm.running_mean, copy=True) for t in found)
    return plain_network(own, gates)
