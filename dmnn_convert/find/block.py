"""A block, as `find_blocks` reports it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..channels import layer_of, tensor_inputs
from ..graph import TracedModel
from .branch import Branch


@dataclass(frozen=True)
class Block:
    """One residual or inverted-residual block, or a near miss.

    Attributes:
        name: path of the smallest module that holds it, or a name derived from its layers.
        kind: "basic", "bottleneck", "grouped-bottleneck", "inverted-residual",
            "fused-inverted-residual", "depthwise-separable", "convnext", "mlp", "residual", or
            "sum" and "chain" for near misses.
        widths: channels from the input over each convolution or linear layer to the output.
        kernels: kernel size of each of them.
        stride: by how much it shrinks the image.
        groups: groups of each of them.
        shortcut: "identity", "projection", "parameter-free" or "none".
        hidden: hidden channels that sub-blocks share out.
        split: what split="matched" does: "hidden-channel", "matched-width", "shared-trunk" or
            "own-squeeze" (hidden-channel, but that each sub-block has a squeeze-excite of its
            own); None where no split fits.
        exact_split: what split="exact" does; or None.
        reason: why no split fits, if none does.
        depth: 1 for the first block that a split fits, in execution order; 0 for a near miss.
        stage: 1 for the first of these blocks, and one more whenever strides or pools have
            changed the image's size since the block before; 0 for a near miss.
    """

    name: str
    kind: str
    widths: tuple[int, ...] = ()
    kernels: tuple[int, ...] = ()
    stride: int = 1
    groups: tuple[int, ...] = ()
    shortcut: str = "none"
    hidden: int = 0
    split: str | None = None
    exact_split: str | None = None
    reason: str | None = None
    depth: int = 0
    stage: int = 0
    branch: Branch | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        if self.reason is not None:
            return f"{self.name}  {self.kind}  left dense: {self.reason}"
        shape = "→".join(map(str, self.widths))
        kernels = ",".join(f"{k}×{k}" for k in self.kernels)
        stride = f"stride {self.stride}  " if self.stride > 1 else ""
        split = str(self.split)
        if self.exact_split != self.split:
            split += f" (exact: {self.exact_split})"
        return (
            f"{self.name}  {self.kind}  stage {self.stage} depth {self.depth}  "
            f"{shape}  {kernels}  {stride}"
            f"{'no' if self.shortcut == 'none' else self.shortcut} shortcut  "
            f"hidden {self.hidden}  {split}"
        )


def block(traced: TracedModel, branch: Branch, name: str, shortcut: str) -> Block:
    """Return the report of a block that some split fits."""
    straight = (n for n in branch.region if not set(tensor_inputs(n)) & set(branch.conditions))
    layers = [layer for n in straight if (layer := layer_of(traced, n)) is not None]
    convs = [layer if isinstance(layer, _ConvNd) else None for layer in layers]
    return Block(
        name=name,
        kind=branch.kind,
        widths=(branch.channels, *(_width(layer) for layer in layers)),
        kernels=tuple(int(conv.kernel_size[0]) if conv else 1 for conv in convs),
        groups=tuple(conv.groups if conv else 1 for conv in convs),
        shortcut=shortcut,
        hidden=branch.width,
        split=branch.matched_split,
        exact_split=branch.exact_split,
        branch=branch,
    )


def _width(layer: _ConvNd | nn.Linear) -> int:
    return layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features
