"""Frozen networks: a level, a row of gates or a found path as a plain network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..evaluation import Evaluation
from ..find import check_attached
from ..frozen import plain_network
from ..graph import copied
from ..nn import controllers
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


def check_own_statistics(model: nn.Module, call: str) -> None:
    """Check that a converted model is not inside `at_level`.

    Raises:
        ArgumentError: if its norms have the statistics of a level, which are not the model's own.
    """
    bank, modules = kept_levels(model), dict(model.named_modules())
    if bank is None:
        return
    for name in bank.norms:
        own, lent = getattr(modules.get(name), "running_mean", None), bank.of(name, 0).mean
        if own is not None and _share(own, lent):
            raise ArgumentError(
                f"{call}: the model is inside at_level, which lends its norms the statistics of a "
                "level; leave that block first."
            )


def _share(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
