"""The last layers of approximate blocks, the norms behind them, and the source's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..errors import ArgumentError
from ..nn import MultiPathBlock, conversion_of, multi_path_blocks, scale_and_shift


@dataclass(frozen=True)
class LastLayers:
    """The last layers of a block's sub-blocks, the norms behind them, and the source's.

    A shared norm occurs in `norms` once for each layer.
    """

    name: str
    block: MultiPathBlock
    layers: tuple[_ConvNd | nn.Linear, ...]
    norms: tuple[nn.Module, ...]
    source_layer: nn.Module
    source_norm: nn.Module | None


def ends_of(model: nn.Module, source: nn.Module) -> Iterator[LastLayers]:
    """Yield the ends of the approximate blocks that can be fitted, in execution order."""
    paths = {m: path for path, m in model.named_modules() if isinstance(m, MultiPathBlock)}
    conversion = conversion_of(model)
    names = None if conversion is None else conversion.config.blocks
    for i, block in enumerate(multi_path_blocks(model)):
        if block.approximate:
            enclosing = paths[block].rpartition(".")[0]
            end = _end(names[i] if names else enclosing, block, enclosing, source)
            if end is not None:
                yield end


def _end(name: str, block: MultiPathBlock, enclosing: str, source: nn.Module) -> LastLayers | None:
    prefix = "sub_blocks.0."
    # Layers are noted in the order in which they run.
    path = [p for p in block.dense_weights if p.startswith(prefix)][-1].removeprefix(prefix)
    found = _submodule(source, enclosing, path)
    weight = getattr(found, "weight", None)
    if found is None or weight is None or weight.numel() != block.dense_weights[prefix + path]:
        raise ArgumentError(
            f"reconstruct: the source has no layer like {name}'s {path}; give the model that was "
            "converted, as it was before."
        )
    layers = [sub_block.get_submodule(path) for sub_block in block.sub_blocks]
    fitted = [m for m in layers if isinstance(m, _ConvNd | nn.Linear) and _pointwise(m)]
    if len(fitted) < len(layers):
        return None
    norm = block.tail_norm and _submodule(source, enclosing, block.tail_norm)
    if not norm or getattr(norm, "running_mean", None) is None:
        return LastLayers(name, block, tuple(fitted), (), found, None)
    shared = block.shared_norm
    holders = block.sub_blocks if shared is None else [shared] * len(layers)
    norms = tuple(holder.get_submodule(str(block.tail_norm)) for holder in holders)
    return LastLayers(name, block, tuple(fitted), norms, found, norm)


def _submodule(root: nn.Module, *path: str) -> nn.Module | None:
    try:
        return root.get_submodule(".".join(filter(None, path)))
    except AttributeError:
        return None


def _pointwise(layer: _ConvNd | nn.Linear) -> bool:
    if isinstance(layer, nn.Linear):
        return True
    padded = not isinstance(layer.padding, str) and any(layer.padding)
    return set(layer.kernel_size) == {1} and layer.groups == 1 and not padded


@contextmanager
def values_kept_on_error(ends: Sequence[LastLayers]) -> Iterator[None]:
    """Restore the values of the layers and norms if the body raises."""
    modules = [module for end in ends for module in (*end.layers, *end.norms)]
    before = [(m, {k: v.clone() for k, v in m.state_dict().items()}) for m in modules]
    try:
        yield
    except BaseException:
        for module, state in before:
            module.load_state_dict(state)
        raise


def affines(end: LastLayers) -> list[tuple[Tensor, Tensor]]:
    """Return scale and shift behind each of the last layers, (C,) each, in float64.

    If they share a norm, each has its part of the shift.
    """
    one = torch.ones(len(end.layers[0].weight)).to(end.layers[0].weight).double()
    if not end.norms:
        return [(one, torch.zeros_like(one))] * len(end.layers)
    norms = [affine(norm, norm) for norm in end.norms]
    parts = 1 if end.block.shared_norm is None else len(norms)
    return [(scale, shift / parts) for scale, shift in norms]


def affine(norm: nn.Module, copied: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a norm in evaluation, float64; its eps comes from a copy."""
    return scale_and_shift(norm, float(getattr(copied, "eps", 0.0)))
