"""Static networks of the same layers: one subset of sub-blocks for all images, no controllers."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from ..errors import GateMismatchError
from .prepared_block import PreparedBlock
from .prepared_model import PreparedModel


class FixedBlock(nn.Module):
    """A prepared block that always runs the same sub-blocks."""

    def __init__(self, block: PreparedBlock, key: int) -> None:
        super().__init__()
        self.block, self.key = block, key

    def forward(self, x: Tensor, shortcut: Tensor | None = None, *context: int | Tensor) -> Tensor:
        """Return ``activation(shortcut + Σ sub-block)`` of x (B, C, H, W)."""
        return self.block.run(self.key, x, shortcut)


def fixed_at(model: PreparedModel, gates: Tensor) -> PreparedModel:
    """Return the static network of one pattern of gates (total sub-blocks,).

    Blocks that could not be prepared keep their controllers.

    Raises:
        GateMismatchError: if the gates do not fit the model.
    """
    sizes = _sizes(model)
    if gates.shape != (sum(sizes),):
        raise GateMismatchError(
            f"fixed_at: gates of shape {tuple(gates.shape)}; this model has {sum(sizes)} "
            f"sub-blocks, so give ({sum(sizes)},)."
        )
    parts = [part.long().tolist() for part in gates.split(sizes)]
    keys = [sum(bit << n for n, bit in enumerate(part)) for part in parts]
    static = copy.deepcopy(model)
    for name, module in list(static.named_modules()):
        if isinstance(module, PreparedBlock):
            parent, _, child = name.rpartition(".")
            key = keys[module.controller.position]
            if key == 0 and module.controller.keep_one:
                raise GateMismatchError(
                    f"fixed_at: {name} has no shortcut, so one of its sub-blocks must run."
                )
            setattr(static.get_submodule(parent), child, FixedBlock(module, key))
    return static


def _sizes(model: PreparedModel) -> list[int]:
    blocks = [m for m in model.modules() if isinstance(m, PreparedBlock)]
    return list(blocks[0].controller.chain.sizes) if blocks else []
