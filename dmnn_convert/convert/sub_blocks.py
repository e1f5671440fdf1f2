"""Chosen blocks, split into sub-blocks and put together as multi-path blocks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from ..channels import NotSplittable, layer_of
from ..config import DynamizeConfig
from ..errors import ArgumentError, ConversionError
from ..find import Block, Branch, SelectedBlock, with_shared_norm
from ..graph import TracedModel, located
from ..nn import (
    GateChain,
    GateController,
    MultiPathBlock,
    NestedBlock,
    NestedParts,
    Parts,
)
from ..split import bottleneck_shape, matched_widths, nest, split_block, too_narrow
from .rewrite import Replacement

_log = logging.getLogger(__name__)


def split_blocks(
    traced: TracedModel, chosen: Sequence[SelectedBlock], config: DynamizeConfig, parameters: int
) -> list[tuple[Block, Parts | NestedParts]]:
    """Split every block that has channels enough; the others stay dense."""
    widths = _widths(traced, chosen, parameters) if config.split == "matched" else {}
    cut: list[tuple[Block, Parts | NestedParts]] = []
    for block, N, by_name in chosen:
        try:
            parts = _parts(traced, block, N, widths.get(block.name), config)
        except NotSplittable as error:
            if by_name:
                raise ArgumentError(
                    f"dynamize: {block.name} is asked for by name, but has {error}. Give it a "
                    "smaller N, or leave it out."
                ) from error
            _log.warning("dynamize: %s stays dense: %s", block.name, error)
            continue
        cut.append((block, parts))
    return cut


def _parts(
    traced: TracedModel,
    block: Block,
    N: int,
    widths: tuple[int, int] | None,
    config: DynamizeConfig,
) -> Parts | NestedParts:
    if config.split == "nested":
        try:
            return nest(traced, _branch(block), N)
        except NotSplittable as error:
            how = f"split as {block.exact_split}, not nested"
            _log.warning("dynamize: %s is %s: %s", block.name, how, error)
    branch = _branch_to_split(traced, block, config.tail_norm)
    return split_block(traced, branch, N, _split(block, config), widths, config.order)


def _branch_to_split(traced: TracedModel, block: Block, tail_norm: str) -> Branch:
    branch = _branch(block)
    if tail_norm != "shared":
        return branch
    try:
        return with_shared_norm(traced, branch)
    except NotSplittable as error:
        _log.warning("dynamize: %s keeps norms in every sub-block: %s", block.name, error)
        return branch


def _split(block: Block, config: DynamizeConfig) -> str:
    return str(block.split if config.split == "matched" else block.exact_split)


def narrow_block(choice: SelectedBlock) -> Block:
    """Return a block that is too narrow for its sub-blocks, with that as its reason."""
    branch = _branch(choice.block)
    reason = too_narrow(branch, choice.N)
    return replace(choice.block, reason=reason and located(reason, branch.output))


def _branch(block: Block) -> Branch:
    if block.branch is None:
        raise ConversionError(f"{block.name}: {block.reason}")
    return block.branch


def _widths(
    traced: TracedModel, chosen: Sequence[SelectedBlock], parameters: int
) -> dict[str, tuple[int, int]]:
    dense = [choice for choice in chosen if choice.block.split == "matched-width"]
    shapes = [bottleneck_shape(traced, _branch(choice.block)) for choice in dense]
    widths = matched_widths(shapes, [choice.N for choice in dense], parameters)
    return {choice.block.name: width for choice, width in zip(dense, widths, strict=True)}


def replacements_of(
    traced: TracedModel, cut: Sequence[tuple[Block, Parts | NestedParts]], config: DynamizeConfig
) -> list[Replacement]:
    """Return what takes the place of each branch: a `MultiPathBlock`, all on one gate chain."""
    chain = GateChain([parts.N for _, parts in cut])
    return [
        Replacement(_branch(block), _multi_path_block(traced, block, parts, config, chain, i))
        for i, (block, parts) in enumerate(cut)
    ]


def _multi_path_block(
    traced: TracedModel,
    block: Block,
    parts: Parts | NestedParts,
    config: DynamizeConfig,
    chain: GateChain,
    position: int,
) -> MultiPathBlock:
    branch = _branch(block)
    controller = GateController(
        branch.channels,
        parts.N,
        config.gate,
        chain,
        position,
        channel_dim=branch.channel_dim,
        keep_one=branch.shortcut is None,
        nested=isinstance(parts, NestedParts),
        num_categories=config.num_categories,
    )
    layer = layer_of(traced, branch.consumer)
    if layer is not None:
        controller.to(device=layer.weight.device, dtype=layer.weight.dtype)
    result: MultiPathBlock
    if isinstance(parts, NestedParts):
        result = NestedBlock(controller, parts)
    else:
        result = MultiPathBlock(controller, parts, _split(block, config))
    training = traced.root.get_submodule(branch.enclosing).training
    result.controller.train(training)
    for own in (result, result.sub_blocks):
        own.training = training
    return result
