"""`dynamize`: assemble a dynamic multi-path network from a model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from .block import MultiPathBlock
from .branch import Branch, NotSplittable, conv_of
from .check import check_convertible
from .config import DynamizeConfig, GateConfig
from .count import does_not_run, measure
from .errors import ArgumentError, ConversionError
from .find import Block, blocks_of, no_blocks_error
from .flops import FlopsTable, flops_table
from .gate import GateChain, GateController
from .observe import observed
from .ops import Role, rule
from .parts import trace
from .rewrite import Replacement, rewrite, undone_on_error
from .split import Parts, matched_widths, split_block, too_narrow
from .split.program import as_module
from .split.widths import Bottleneck
from .trace import Trace

_log = logging.getLogger(__name__)

Where = Callable[[Block], bool] | Iterable[str] | None


class Dynamized(NamedTuple):
    """A converted model and its FLOPs table."""

    model: nn.Module
    table: FlopsTable


def dynamize(
    model: nn.Module,
    N: int = 2,
    *,
    split: str = "matched",
    gate: GateConfig = GateConfig(),  # noqa: B008  (frozen)
    input_size: Sequence[int] = (3, 224, 224),
    where: Where = None,
    num_categories: int | None = None,
    inplace: bool = False,
) -> Dynamized:
    """Turn a CNN into a Dynamic Multi-path Neural Network.

    Args:
        model: any eager `nn.Module`; torchvision's, timm's or your own.
        N: sub-blocks a block.
        split: "matched" is the paper's; "exact" keeps the function of every block.
        gate: the controllers.
        input_size: shape of one image, e.g. (C, H, W), which FLOPs are counted for.
        where: which blocks: a function of a `Block`, or names and patterns ("layer[34].*").
        num_categories: give the controllers category heads of so many classes, for training.
        inplace: convert `model` itself rather than a copy; a failure leaves it as it was.

    Returns:
        The model and its FLOPs table; ``model(x)`` returns what it returned before.

    Raises:
        ArgumentError: for arguments out of range, or a `model` that is no module.
        NoBlocksFoundError: if no block can be split.
        AlreadyConvertedError: if the model is converted already.
        ConversionError: if the model cannot be converted as it stands.
    """
    config = DynamizeConfig(N, split, gate, input_size, None, num_categories)  # type: ignore[arg-type]
    check_convertible(model, "dynamize")
    target = model if inplace else _copied(model)
    try:
        with undone_on_error(target):
            return _convert(target, config, where)
    except _NotMeasured as error:
        # Costs are measured last; a model that never ran on this input size shows up only there.
        _check_input_size(model, config.input_size)
        raise ConversionError(
            f"dynamize: the converted {type(model).__name__} does not run on "
            f"{config.input_size}, though the source does: {error.__cause__}. Leave blocks out "
            "with where=, and please report this."
        ) from error


class _NotMeasured(Exception):
    """The converted model does not run."""


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ConversionError(
            f"dynamize: {type(model).__name__} cannot be copied ({error}); "
            "convert it in place with inplace=True."
        ) from error


def _check_input_size(model: nn.Module, input_size: tuple[int, ...]) -> None:
    try:
        measure(model, input_size)
    except ConversionError:
        raise
    except Exception as error:
        raise does_not_run(model, input_size, error) from error


def _convert(model: nn.Module, config: DynamizeConfig, where: Where) -> Dynamized:
    dense_params = sum(parameter.numel() for parameter in model.parameters())
    traced = trace(model)
    found = blocks_of(traced, observed(model, traced, config.input_size))
    chosen = _selected(model, found, where)
    cut = _cut(traced, chosen, config, dense_params)
    if not cut:
        raise no_blocks_error(
            model, [*_too_narrow(chosen, config), *(b for b in found if b.reason)]
        )
    blocks = [block for block, _ in cut]
    replacements = _replacements(traced, cut, config)
    rewrite(model, traced, replacements)
    names = tuple(block.name for block in blocks)
    try:
        table = flops_table(model, config.input_size, names, dense_params)
    except Exception as error:
        raise _NotMeasured from error
    model.dmnn_table = table  # type: ignore[assignment]
    model.dmnn_config = replace(config, blocks=names)  # type: ignore[assignment]
    return Dynamized(model, table)


def _selected(model: nn.Module, found: Sequence[Block], where: Where) -> list[Block]:
    usable = [block for block in found if block.reason is None]
    if not usable:
        raise no_blocks_error(model, found)
    if where is None:
        return usable
    if callable(where):
        chosen = [block for block in usable if where(block)]
    else:
        chosen = _matching(usable, _patterns(where))
    if not chosen:
        raise ArgumentError(
            f"dynamize(where=...): selects none of {', '.join(b.name for b in usable)}."
        )
    return chosen


def _patterns(where: object) -> list[str]:
    patterns = [where] if isinstance(where, str) else where
    if isinstance(patterns, Iterable):
        patterns = list(patterns)
        if all(isinstance(pattern, str) for pattern in patterns):
            return patterns
    raise ArgumentError(
        f"dynamize(where={where!r}): give a function of a Block, or names and patterns of blocks."
    )


def _matching(blocks: Sequence[Block], patterns: Sequence[str]) -> list[Block]:
    for pattern in patterns:
        if not any(fnmatchcase(block.name, pattern) for block in blocks):
            raise ArgumentError(
                f"dynamize(where=...): no block matches {pattern!r}; "
                f"there are {', '.join(block.name for block in blocks)}."
            )
    return [b for b in blocks if any(fnmatchcase(b.name, pattern) for pattern in patterns)]


def _cut(
    traced: Trace, blocks: Sequence[Block], config: DynamizeConfig, parameters: int
) -> list[tuple[Block, Parts]]:
    """Split every block that has channels enough; the others stay dense."""
    widths = _widths(traced, blocks, config, parameters)
    cut = []
    for block in blocks:
        try:
            parts = split_block(traced, _branch(block), config.N, widths.get(block.name))
        except NotSplittable as error:
            _log.warning("dynamize: %s stays dense: %s", block.name, error)
            continue
        cut.append((block, parts))
    return cut


def _too_narrow(blocks: Sequence[Block], config: DynamizeConfig) -> list[Block]:
    return [replace(block, reason=too_narrow(_branch(block), config.N)) for block in blocks]


def _branch(block: Block) -> Branch:
    if block.branch is None:
        raise ConversionError(f"{block.name}: {block.reason}")
    return block.branch


def _widths(
    traced: Trace, blocks: Sequence[Block], config: DynamizeConfig, parameters: int
) -> dict[str, tuple[int, int]]:
    if config.split != "matched":
        return {}
    dense = [block for block in blocks if block.split == "matched-width"]
    shapes = [_bottleneck(traced, _branch(block)) for block in dense]
    widths = matched_widths(shapes, config.N, parameters)
    return {block.name: width for block, width in zip(dense, widths, strict=True)}


def _bottleneck(traced: Trace, branch: Branch) -> Bottleneck:
    convs = [conv for n in branch.nodes if (conv := conv_of(traced, n))]
    first, second, third = convs
    return Bottleneck(
        first.in_channels,
        first.out_channels,
        second.out_channels,
        third.out_channels,
        kernels=tuple(conv.weight[0, 0].numel() for conv in convs),
        per_channel=_per_channel(traced, branch),
    )


def _per_channel(traced: Trace, branch: Branch) -> tuple[int, ...]:
    """Return how many parameters each channel has in the biases and norms after each conv."""
    counts: list[int] = []
    for node in branch.nodes:
        conv, module = conv_of(traced, node), as_module(traced, node)
        if conv is not None:
            counts.append(int(conv.bias is not None))
        elif module is not None and counts and rule(traced, node).role is Role.NORM:
            counts[-1] += sum(1 for _ in module.parameters())
    return tuple(counts)


def _replacements(
    traced: Trace, cut: Sequence[tuple[Block, Parts]], config: DynamizeConfig
) -> list[Replacement]:
    chain = GateChain([len(parts.sub_blocks) for _, parts in cut])
    return [
        Replacement(_branch(block), _multi_path_block(traced, block, parts, config, chain, i))
        for i, (block, parts) in enumerate(cut)
    ]


def _multi_path_block(
    traced: Trace,
    block: Block,
    parts: Parts,
    config: DynamizeConfig,
    chain: GateChain,
    position: int,
) -> MultiPathBlock:
    branch = _branch(block)
    controller = GateController(
        block.widths[0],
        len(parts.sub_blocks),
        config.gate,
        chain,
        position,
        keep_one=branch.shortcut is None,
        num_categories=config.num_categories,
    )
    conv = conv_of(traced, branch.consumer)
    if conv is not None:
        controller.to(device=conv.weight.device, dtype=conv.weight.dtype)
    result = MultiPathBlock(
        controller,
        parts.sub_blocks,
        parts.trunk,
        parts.post,
        parts.tail_norm,
        str(block.split if config.split == "matched" else block.exact_split),
        parts.dense_weights,
    )
    training = traced.root.get_submodule(branch.enclosing).training
    result.controller.train(training)
    for own in (result, result.sub_blocks):
        own.training = training
    return result
