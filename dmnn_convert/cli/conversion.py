"""The conversion that ``dmnn-convert`` makes, reports and saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import nn

from ..config import DynamizeConfig, GateConfig
from ..convert import Dynamized
from ..convert import convert as convert_model
from ..dryrun import own_size
from ..errors import ArgumentError, ConversionError, DmnnError
from ..evaluation import block_errors
from ..find import find_blocks
from ..finetune import LAST
from ..io import load_source_checkpoint, save, zoo
from ..nn import multi_path_blocks
from ..report import ConversionReport


def convert(
    arch: str,
    num_sub_blocks: int | dict[str, int],
    split: str,
    tail_norm: str,
    order: str,
    input_size: tuple[int, ...] | None,
    num_classes: int | None,
    checkpoint: Path | None,
    pretrained: bool,
    where: tuple[str, ...],
    init_rate: float,
    spread: float,
    certainty: float,
    seed: int,
    form: str,
    verbose: bool,
    output: Path | None,
) -> None:
    """Convert a network of the zoo or the user's own, print a report, and save it if asked to.

    Raises:
        click.UsageError: for options that exclude each other.
        ArgumentError: for an output folder that holds a run.
        DmnnError: if the network cannot be built or converted.
    """
    if checkpoint and pretrained:
        raise click.UsageError("give --checkpoint or --pretrained, not both.")
    if output and (output.parent / LAST).exists():
        raise ArgumentError(
            f"--output {output}: {output.parent} is a fine-tuning run; give another folder."
        )
    torch.manual_seed(seed)
    source = _source(arch, num_classes, pretrained)
    if checkpoint:
        load_source_checkpoint(source, checkpoint)
    source.eval()
    size = input_size or own_size(source)
    config = DynamizeConfig(
        num_sub_blocks,
        split,
        GateConfig(init_rate=init_rate, spread=spread, certainty=certainty),
        size,
        tail_norm=tail_norm,
        order=order,
    )
    converted = convert_model(source, config, where or None)  # the report says what stays dense
    errors: dict[str, float] = {}
    measured_on = ""
    if checkpoint or pretrained:
        errors, measured_on = _errors(source, converted, size)
    report = ConversionReport(
        arch, find_blocks(source, size), converted.model, converted.table, errors, measured_on
    )
    form_of: dict[str, Callable[[], str]] = {
        "table": lambda: report.as_text(verbose),
        "json": report.as_json,
        "csv": report.as_csv,
    }
    click.echo(form_of[form]())
    if output:
        save(converted.model, output, arch=arch, num_classes=num_classes)
        click.echo(_saved(arch, output), err=True)


def _source(arch: str, num_classes: int | None, pretrained: bool) -> nn.Module:
    try:
        return zoo.build(arch, num_classes=num_classes, pretrained=pretrained)
    except DmnnError:
        raise
    except Exception as error:  # whatever a user's factory or a zoo's builder raises
        raise ConversionError(
            f"{arch}: building the model failed: {type(error).__name__}: {error}"
        ) from error


def _errors(
    source: nn.Module, converted: Dynamized, size: tuple[int, ...]
) -> tuple[dict[str, float], str]:
    """Measure the blocks' errors where a split is approximate."""
    if not any(block.approximate for block in multi_path_blocks(converted.model)):
        return {}, ""
    images = torch.randn(4, *size, generator=torch.Generator().manual_seed(0))
    return block_errors(source, converted.model, images), "on 4 images of Gaussian noise"


def _saved(arch: str, output: Path) -> str:
    own = "" if zoo.is_zoo_name(arch) else ", model=<your unconverted network>"
    return (
        f"Saved to {output}. Load it with dmnn_convert.load({str(output)!r}{own}).\n"
        "Next: dmnn-convert finetune with the same --arch and weights, and --data; it converts by "
        "itself."
    )
