"""Check one model: convert it, compare it with its source, fill in its row."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from zoo_coverage import TOLERANCE, TOLERANCE_64, Row
from zoo_libraries import Library
from zoo_models import Instance, NoInstanceError, at_declared_size, instance, seeded, tensors

from dmnn_convert import (
    ArgumentError,
    DmnnError,
    FlopsTable,
    MultiPathBlock,
    NoBlocksFoundError,
    dynamize,
    find_blocks,
    force_gates,
    freeze,
    level_path,
    set_execution,
)
from dmnn_convert.dryrun import measure

MATTERS = 2e-4
"""How far a block that is switched off must move the output, of the largest magnitude."""
PARAMETERS = 0.01
"""How far the matched split's parameters may be from the source's.

Copies of norms, which weigh in very small models, may be beyond that.
"""


def check(library: Library, label: str, name: str, split: str = "exact") -> Row:
    """Check a split of the model `name` of the library that the table calls `label`."""
    started = time.perf_counter()
    row = Row(label, name, "failed")
    try:
        checked = instance(library, name)
    except NoInstanceError as error:
        if out_of_memory(error):
            raise
        row = replace(row, reason=one_line(str(error)))
    else:
        row = _checked(row, checked, split)
        row = replace(row, reason="; ".join(filter(None, (checked.remark, row.reason))))
    return replace(row, seconds=time.perf_counter() - started)


def one_line(text: str, length: int = 200) -> str:
    """Return a message as one line, cut to a length."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def _checked(row: Row, source: Instance, split: str) -> Row:
    try:
        blocks = find_blocks(source.model, source.input_size)
        row = replace(row, blocks=len(blocks))
        model, table = dynamize(
            source.model,
            N=2,
            split=split,
            input_size=source.input_size,
            inplace=all(block.reason for block in blocks),  # a refusal needs no copy
        )
    except DmnnError as error:
        return replace(row, status="refused", reason=refusal(error))
    row = replace(
        row,
        split_blocks=len(table.blocks),
        gated_share=table.gated / table.dense_total,
    )
    try:
        row = _compared(row, source, model, table)
    except ArgumentError:  # its forward decides by sizes, and takes those that it is converted for
        source = at_declared_size(source)
        row = _compared(row, source, model, table)
    if row.status != "failed":
        row = _trained(row, source, model)
    if split == "nested":
        return row if row.status == "failed" else _with_levels(row, source, model, table)
    del model  # before the next one is made
    return row if row.status == "failed" else _matched(row, source)


def refusal(error: DmnnError) -> str:
    """Return why a model is refused: of a model without blocks, its first near miss."""
    if out_of_memory(error):
        raise error
    lines = str(error).splitlines()
    if isinstance(error, NoBlocksFoundError) and len(lines) > 1:
        return one_line(lines[1])
    return one_line(" ".join(lines[:2]))


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, or what it comes from, says that memory ran out."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return True
    return error.__cause__ is not None and out_of_memory(error.__cause__)


# --- the exact split --------------------------------------------------------------------------


def _compared(row: Row, source: Instance, model: nn.Module, table: FlopsTable) -> Row:
    got = _run(model, source.images)
    row = replace(row, deviation=deviation(got, source.output))
    dull = _without_effect(model, source.images, table.sizes, got)
    if dull:
        return replace(row, reason=f"proves nothing: {dull} does not change the output")
    declared = sum(getattr(b, "approximate", False) for b in _blocks(model))
    if declared:
        return replace(row, status="approximate", reason=f"{declared} approximate blocks")
    if row.deviation <= TOLERANCE:
        return replace(row, status="exact")
    return _compared_in_float64(row, source, model)


def _compared_in_float64(row: Row, source: Instance, model: nn.Module) -> Row:
    """Tell rounding, which float64 takes away, from a mistake, which it does not."""
    images = source.images.double()
    try:
        with torch.no_grad():
            expected = seeded(source.model.double(), images)
        precise = deviation(_run(model.double(), images), expected)
    except Exception as error:  # of models that mix in float32 of their own
        if out_of_memory(error):
            raise
        return replace(row, reason=one_line(f"not exact, and no float64 to tell why: {error}"))
    finally:
        source.model.float()
    reason = f"float32 {row.deviation:.1e}, float64 {precise:.1e}"
    exact = precise <= TOLERANCE_64
    return replace(row, status="exact" if exact else "failed", reason=reason)


def _run(model: nn.Module, images: Tensor, gates: bool | Tensor = True) -> list[Tensor]:
    with torch.no_grad(), force_gates(model, gates):
        return seeded(model, images)


def deviation(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest deviation in any tensor, of this tensor's largest magnitude."""
    if [t.shape for t in got] != [t.shape for t in expected]:
        return float("inf")
    return max((_deviation(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)


def _deviation(got: Tensor, expected: Tensor) -> float:
    if got.numel() == 0 or torch.equal(got, expected):
        return 0.0
    largest = float(expected.double().abs().max())
    off = float((got.double() - expected.double()).abs().max()) / largest if largest else torch.inf
    return off if off == off else torch.inf  # not a number compares as small with everything


def _without_effect(
    model: nn.Module, images: Tensor, sizes: Sequence[int], expected: Sequence[Tensor]
) -> str:
    """Return the first block that could be wrong without being noticed; "" if there is none."""
    if deviation(_run(model, images, False), expected) < MATTERS:
        return "switching all gates off"
    for number in sorted({0, len(sizes) // 2, len(sizes) - 1}):
        gates = [torch.full((len(images), n), float(i != number)) for i, n in enumerate(sizes)]
        if deviation(_run(model, images, torch.cat(gates, 1)), expected) < MATTERS:
            return f"switching block {number} off"
    return ""


def _blocks(model: nn.Module) -> list[MultiPathBlock]:
    return [module for module in model.modules() if isinstance(module, MultiPathBlock)]


# --- a training step --------------------------------------------------------------------------


def _trained(row: Row, source: Instance, model: nn.Module) -> Row:
    """Take a training step; what gets no gradient here must get none in the source either."""
    problem, without = _step(model, source.images)
    if problem or without:
        own_problem, own_without = _step(source.model, source.images)
        if own_problem:
            return replace(row, training="no source step")
        known = {_layer(name) for name in own_without}
        lost = [name for name in without if _layer(name) not in known]
        problem = problem or (f"{lost[0]} gets no gradient" if lost else "")
    if problem:
        return replace(row, status="failed", reason=one_line(f"training step: {problem}"))
    return replace(row, training="step")


def _layer(name: str) -> str:
    """Return the end of a parameter's name, which a layer keeps in a sub-block."""
    return ".".join(name.split(".")[-2:])


def _step(model: nn.Module, images: Tensor) -> tuple[str, list[str]]:
    """Run forward and backward in training mode: what went wrong, and what got no gradient."""
    torch.manual_seed(4)
    model.float().train()  # after a comparison in float64
    try:
        outputs = [t for t in tensors(model(images)) if t.requires_grad]
        torch.stack([t.float().square().mean() for t in outputs]).sum().backward()
    except Exception as error:  # whatever a model raises
        if out_of_memory(error):
            raise
        return f"{type(error).__name__}: {error}", []
    finally:
        model.eval()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    bad = [n for n, g in gradients.items() if g is not None and not bool(g.isfinite().all())]
    problem = f"{bad[0]} gets a gradient that is not finite" if bad else ""
    return problem, [n for n, g in gradients.items() if g is None]


# --- the nested split ---------------------------------------------------------------------------


def _with_levels(row: Row, source: Instance, model: nn.Module, table: FlopsTable) -> Row:
    """Check the lowest level: masked, skipping and frozen are one function, at the table's cost."""
    path = level_path(model, 0.5)
    skipped = _run(model, source.images, path)
    set_execution(model, "masked")
    frozen = freeze(model, path)
    with torch.no_grad():
        plain = tensors(frozen(source.images))
    apart = {
        "masked": deviation(_run(model, source.images, path), skipped),
        "frozen": deviation(plain, skipped),
    }
    off = [f"level 1/2, {form}: off by {d:.1e}" for form, d in apart.items() if d > TOLERANCE]
    macs = measure(frozen, source.input_size).macs[""]
    told = int(table.network_flops(path[None])) - table.controllers
    if macs != told:
        off.append(f"level 1/2 takes {macs} MACs, not {told}")
    nested = f"{len(table.nested)} of {len(table.blocks)} blocks nested"
    reason = "; ".join(filter(None, [nested, row.reason, *off]))
    return replace(row, status="failed" if off else row.status, reason=reason)


# --- the matched split ------------------------------------------------------------------------


def _matched(row: Row, source: Instance) -> Row:
    try:
        # In place, because nothing needs the source any more, and a copy takes time and memory.
        model, table = dynamize(
            source.model, N=2, split="matched", input_size=source.input_size, inplace=True
        )
    except DmnnError as error:
        return replace(row, status="failed", reason=one_line(f"matched split: {refusal(error)}"))
    ratio = table.params / table.dense_params
    row = replace(row, parameter_ratio=ratio)
    own = ratio - _copies_of_norms(model) / table.dense_params
    if own > 1 + PARAMETERS or ratio < 1 - PARAMETERS:
        return replace(row, status="failed", reason="the matched split's parameters are off")
    return row


def _copies_of_norms(model: nn.Module) -> int:
    """Return the parameters of the norms that each sub-block but the first has for itself."""
    copies = 0
    for block in _blocks(model):
        if block.tail_norm is not None and block.shared_norm is None:
            norms = [own.get_submodule(block.tail_norm) for own in block.sub_blocks[1:]]
            copies += sum(p.numel() for norm in norms for p in norm.parameters())
    return copies
