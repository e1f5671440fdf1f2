"""The forms of one block: for each subset of its sub-blocks a chain of packed convolutions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..nn import MultiPathBlock
from .activation import Activation
from .layer import Layer, affine, chain_of, does_nothing, merged, traced, ungrouped
from .packed import PackedConv

_log = logging.getLogger(__name__)


MERGED_UP_TO = 3
"""Most sub-blocks whose every subset gets weights of its own: 2^(N-1) times the block's."""


class ConvChain(nn.Sequential):
    """Packed convolutions one after another, the last with a sum and an activation."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__(*map(PackedConv, layers))
        *before, last = self._modules.values()
        # Calling a module costs as much as a small convolution's arithmetic; these have no hooks.
        self._before = [conv.forward for conv in before]
        self._last = last.forward

    def forward(
        self, x: Tensor, other: Tensor | None = None, activation: Activation | None = None
    ) -> Tensor:
        """Return ``activation(chain(x) + other)``."""
        for conv in self._before:
            x = conv(x)
        return self._last(x, other, activation)  # type: ignore[no-any-return]


class Masked(nn.Module):
    """All sub-blocks at once, the gates multiplying the hidden channels before the last layer."""

    def __init__(
        self, chains: Sequence[Sequence[Layer]], whole: Sequence[Layer], shift: Tensor | None
    ) -> None:
        super().__init__()
        self.shift = shift
        self.first = ConvChain(whole[:-1])
        self.last = PackedConv(whole[-1], biased=False)
        widths = torch.tensor([chain[-1].weight.shape[1] for chain in chains])
        device = whole[0].weight.device
        self.owner = torch.repeat_interleave(torch.arange(len(chains)), widths).to(device)
        self.biases = torch.stack([chain[-1].bias for chain in chains])

    def forward(
        self,
        x: Tensor,
        gates: Callable[[], Tensor],
        other: Tensor | None,
        activation: Activation | None,
    ) -> Tensor:
        """Return ``activation(Σ gate · sub-block + other)``; gates (B, N) are read late."""
        hidden = self.first(x)
        decided = gates().to(x.dtype)
        y = self.last(hidden * decided[:, self.owner, None, None], other)
        bias = decided @ self.biases
        if self.shift is not None:
            bias = bias + decided.amax(1, keepdim=True) * self.shift
        y = y + bias[:, :, None, None]
        return y if activation is None else activation.apply(y)


class Forms(NamedTuple):
    """The computation of a block.

    Attributes:
        trunk: layers that the sub-blocks share; may be empty.
        chains: the sub-blocks', a shared norm's scale folded in.
        shift: the shift of a shared norm for images with any gate on, (C,); None for none.
    """

    trunk: list[Layer]
    chains: list[list[Layer]]
    shift: Tensor | None


def forms_of(block: MultiPathBlock) -> Forms | None:
    """Return a block's layers; None if it is more than chains of convolutions."""
    if block.squeeze is not None or block.controller.channel_dim != 1:
        return None
    if block.post is not None and not _does_nothing(block.post):
        return None
    trunk = [] if block.trunk is None else chain_of(block.trunk)
    chains = [chain_of(sub_block) for sub_block in block.sub_blocks]
    known = [chain for chain in chains if chain]
    if trunk is None or len(known) < len(chains):
        return None
    if block.shared_norm is None:
        return Forms(trunk, known, None)
    found = _one_norm(block.shared_norm)
    if found is None or any(chain[-1].activation for chain in known):
        return None
    scale, shift = found
    none = torch.zeros_like(shift)
    scaled = [[*chain[:-1], chain[-1].scaled(scale, none)] for chain in known]
    return Forms(trunk, scaled, shift)


def _does_nothing(module: nn.Module) -> bool:
    found = traced(module)
    if found is None:
        return False
    calls = [n for n in found.graph.nodes if n.op not in ("placeholder", "output")]
    return all(does_nothing(found.module(node)) for node in calls)


def _one_norm(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return (scale, shift), (C,) each, of a module that is one batch norm; None for others."""
    found = traced(module)
    if found is None:
        return None
    calls = [n for n in found.graph.nodes if n.op not in ("placeholder", "output")]
    return affine(found.module(calls[0])) if len(calls) == 1 else None


def keys_of(N: int) -> range:
    """Return the keys of all subsets of N sub-blocks but the empty one."""
    return range(1, 2**N)


def chosen(key: int, N: int) -> list[int]:
    """Return the sub-blocks that a key stands for."""
    return [n for n in range(N) if key >> n & 1]


def subset_chains(forms: Forms) -> tuple[dict[int, ConvChain], Masked | None]:
    """Return chains by key and the masked form: all, or as many as are useful and fit in memory."""
    chains, shift = forms.chains, forms.shift
    N = len(chains)
    subsets = {1 << n: ConvChain(_shifted(chain, shift)) for n, chain in enumerate(chains)}
    masked = None
    try:
        whole = _merged(chains)
        if whole is not None and len(whole) > 1:
            masked = Masked(chains, whole, shift)
        for key in keys_of(N) if N <= MERGED_UP_TO else ():
            layers = _merged([chains[n] for n in chosen(key, N)])
            if layers is not None and key not in subsets:
                subsets[key] = ConvChain(_shifted(layers, shift))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        say_out_of_memory()
    return subsets, masked


def _merged(chains: Sequence[Sequence[Layer]]) -> list[Layer] | None:
    """Return chains as one, as their device runs it fastest.

    On GPUs a convolution of two or three groups takes several times as long as one without, which
    computes zeros besides.
    """
    layers = merged(chains)
    if layers is None or layers[0].weight.device.type != "cuda":
        return layers
    few = len(chains) <= MERGED_UP_TO
    return [ungrouped(x) if few and x.groups == len(chains) else x for x in layers]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is missing."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "memory" in str(error).lower()


def say_out_of_memory() -> None:
    """Warn that fewer forms are kept than would be fast."""
    _log.warning(
        "prepare: no memory for the weights of every subset of sub-blocks; some run one after "
        "another, which is slower. Free some memory, or use a smaller N."
    )


def _shifted(layers: Sequence[Layer], shift: Tensor | None) -> list[Layer]:
    if shift is None:
        return list(layers)
    last = layers[-1]
    return [*layers[:-1], replace(last, bias=last.bias + shift)]
