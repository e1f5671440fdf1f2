"""The conversion of a model: `convert`, and `dynamize`, its public form."""

from __future__ import annotations

import contextlib
import logging
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from ..config import DynamizeConfig, GateConfig
from ..dryrun import call_record, check_input_size, measure
from ..errors import ArgumentError, ConversionError
from ..find import Where, blocks_of, check_convertible, no_blocks_error, select
from ..flops import FlopsTable, flops_table
from ..graph import Key, copied, guard_saving, keeping_methods, running_copy, skeleton, trace
from ..nn import attach
from .coverage import NOT_SELECTED, in_part, left_dense
from .misfits import misfits
from .mixing import mixing
from .own_methods import objections_of_methods
from .rewrite import Unreplaceable, rewrite, undone_on_error
from .self_check import SelfCheck
from .sub_blocks import narrow_block, replacements_of, split_blocks

_log = logging.getLogger(__name__)


class Dynamized(NamedTuple):
    """A converted model and its FLOPs table."""

    model: nn.Module
    table: FlopsTable


def dynamize(
    model: nn.Module,
    N: int | Mapping[str, int] = 2,
    *,
    split: str = "matched",
    gate: GateConfig = GateConfig(),  # noqa: B008  (frozen)
    input_size: Sequence[int] = (3, 224, 224),
    where: Where = None,
    num_categories: int | None = None,
    inplace: bool = False,
    tail_norm: str = "per-sub-block",
    order: str = "source",
    verify: bool = True,
) -> Dynamized:
    """Turn a CNN into a Dynamic Multi-path Neural Network.

    Args:
        model: any eager `nn.Module`; torchvision's, timm's or your own.
        N: sub-blocks per block; or {selector: number}, where a block's own name takes precedence
            over other selectors, and these apply in their order. Blocks that no key selects stay
            dense, as do those with 0; 1 gives a block that is skipped or run as a whole.
        split: "matched" is the paper's; "exact" keeps the function of every block. So does
            "nested", in which a sub-block adds channels to every hidden width of those before it
            and runs only if these do: k of N keep k/N of a bottleneck's 1×1 layers and (k/N)² of
            its k×k one. A block that cannot nest is split as by "exact", with a warning.
        gate: the controllers.
        input_size: shape of one image, e.g. (C, H, W), which FLOPs are counted for.
        where: which blocks: a function of a `Block`, or selectors: names and patterns
            ("layer[34].*"), "kind:bottleneck", "stage:2-4", "depth:3-" (both from 1, as
            `find_blocks` counts them). Several are a union, from which "!layer4.2" takes away;
            "!stage:1" alone is all but the first stage.
        num_categories: give the controllers category heads of so many classes, for training.
        inplace: convert `model` itself rather than a copy; a failure leaves it as it was.
        tail_norm: "per-sub-block" gives each sub-block a copy of the block's last batch norm;
            "shared" keeps one, on the gated sum. It has fewer parameters and as many FLOPs, but it
            is a different model: the same with all gates on in evaluation, while in training the
            norm's statistics see the zeros of gates that are off. Where the norms of parallel paths
            are summed, it cannot be shared: each sub-block keeps its own, and a warning says so.
        order: which hidden channels sub-blocks get. "source" gives them runs in the source's order.
            "importance" gives the first one those that count most (scale of their norm times L2
            norm of the weights that read them), and the next ones those that follow. Gates then
            have something to choose between; with all gates on, the function is the same. Blocks
            whose sub-blocks take slices of a value that is computed whole keep the source's order.
            Narrower bottlenecks choose channels for themselves, and are sorted by what they keep.
            Nested sub-blocks always go by importance, and have one tail norm.
        verify: run the source and the converted model on one random image, in evaluation, with all
            gates on, and compare. A block whose result differs from the source's stays dense, with
            a warning. Blocks that are approximate on purpose are not compared.

    Returns:
        The model and its FLOPs table. ``model(x)`` takes and returns what it did before. Where
        blocks stay dense though they were selected, a warning says how many, and why.

    Raises:
        ArgumentError: for arguments out of range, or a `model` that is not a module.
        NoBlocksFoundError: if no block can be split.
        AlreadyConvertedError: if the model is converted already.
        ConversionError: if the model cannot be converted as it stands.

    Example:
        >>> model, table = dynamize(source, N=2, input_size=(3, 16, 16))
        >>> model.eval()(images).shape
        torch.Size([32, 10])
    """
    config = DynamizeConfig(
        *(N, split, gate, input_size, None, num_categories, tail_norm, order)  # type: ignore[arg-type]
    )
    converted = convert(model, config, where, inplace=inplace, verify=verify)
    if any(reason != NOT_SELECTED for reason in left_dense(converted.model).values()):
        _log.warning("dynamize: %s", in_part(converted.model, converted.table))
    return converted


@torch.inference_mode(False)  # what is made under it could never be trained
def convert(
    model: nn.Module,
    config: DynamizeConfig,
    where: Where = None,
    *,
    inplace: bool = False,
    verify: bool = True,
) -> Dynamized:
    """Convert a model as `dynamize` does, from a config.

    Args:
        model: the source.
        config: the settings; its `blocks` are not read, but set in the converted model's.
        where: which blocks.
        inplace: convert `model` itself.
        verify: compare with the source.

    Raises:
        DmnnError: as `dynamize` does.
    """
    check_convertible(model, "dynamize")
    if not isinstance(verify, bool):
        raise ArgumentError(f"dynamize(verify={verify!r}): give True or False.")
    target = model if inplace else _copied(model)
    source = running_copy(model) if inplace and verify else model
    check = SelfCheck(source, config.input_size) if verify else None
    refused: dict[Key, str] = {}
    try:
        while True:
            try:
                with undone_on_error(target):
                    return _convert(target, config, where, refused, check)
            except _Refused as blocks:
                refused |= blocks.reasons
    except _NotMeasured as error:
        # Costs are measured last; a model that never ran on this input size shows up only there.
        check_input_size(model, config.input_size)
        raise ConversionError(
            f"dynamize: the converted {type(model).__name__} does not run on "
            f"{config.input_size}, though the source does: {error.__cause__}. Leave blocks out "
            "with where=, and please report this."
        ) from error


class _NotMeasured(Exception):
    """The converted model fails to run."""


class _Refused(Exception):
    """Some blocks have to stay dense, as only the converted model shows."""

    def __init__(self, reasons: dict[Key, str]) -> None:
        self.reasons = reasons


def _copied(model: nn.Module) -> nn.Module:
    held = next(_bound_functions(model), None)
    if held is not None:
        raise ConversionError(
            f"dynamize: {held} is a function whose closure holds a part of the model. In a copy it "
            "would go on using the original's; convert the model in place with inplace=True."
        )
    try:
        return copied(model)
    except Exception as error:
        skeleton(model)  # raises where converting in place would fail as well
        raise ConversionError(
            f"dynamize: {type(model).__name__} cannot be copied ({error}); "
            "convert it in place with inplace=True."
        ) from error


def _bound_functions(model: nn.Module) -> Iterator[str]:
    """Yield the attributes that are functions which no copy of the model could take along."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            closure = value.__closure__ if isinstance(value, types.FunctionType) else None
            with contextlib.suppress(ValueError):  # a variable that is not assigned yet
                values = [cell.cell_contents for cell in closure or ()]
                if any(isinstance(getattr(v, "__self__", v), nn.Module) for v in values):
                    yield f"{path}.{name}" if path else name


def _convert(
    model: nn.Module,
    config: DynamizeConfig,
    where: Where,
    refused: Mapping[Key, str],
    check: SelfCheck | None,
) -> Dynamized:
    dense_params = sum(parameter.numel() for parameter in model.parameters())
    with keeping_methods():
        traced = trace(model, config.input_size)
        found = blocks_of(traced, call_record(model, traced, config.input_size), refused)
        misses = [block for block in found if block.reason]
        if len(misses) == len(found):
            raise no_blocks_error(model, misses)
        chosen = select(found, where, config.N)
        cut = split_blocks(traced, chosen, config, dense_params)
        if not cut:
            raise no_blocks_error(model, [*map(narrow_block, chosen), *misses])
        blocks = [block for block, _ in cut]
        replacements = replacements_of(traced, cut, config)
        try:
            rewrite(model, traced, replacements)
        except Unreplaceable as error:
            raise _Refused({node.meta["key"]: str(error) for node in error.outputs}) from error
    names = tuple(block.name for block in blocks)

    def refuse(unfit: Mapping[int, str]) -> None:
        if unfit:
            outputs = [replacement.branch.output for replacement in replacements]
            raise _Refused({outputs[i].meta["key"]: reason for i, reason in unfit.items()})

    def check_all(unfit: Mapping[int, str]) -> None:
        if check is not None and not unfit:
            unfit = check.objections(model, traced, replacements)
            unfit |= mixing(model, traced, replacements, config.input_size)
            for i, reason in unfit.items():
                _log.warning("dynamize: %s stays dense: %s", names[i], reason)
        refuse(unfit)

    refuse(objections_of_methods(model, traced, replacements))
    try:
        cost = measure(model, config.input_size)
    except Exception as error:
        check_all({})
        raise _NotMeasured from error
    check_all(misfits(model, [replacement.block for replacement in replacements], cost))
    table = flops_table(model, config.input_size, names, dense_params, cost)
    guard_saving(model)
    narrow = {choice.block.name: narrow_block(choice).reason for choice in chosen}
    left = (b for b in found if b.name not in names)
    reasons = {b.name: b.reason or narrow.get(b.name) or NOT_SELECTED for b in left}
    attach(model, replace(config, blocks=names), table, reasons)
    return Dynamized(model, table)
