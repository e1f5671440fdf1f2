"""``dmnn-convert deploy``: a saved network as files for an inference engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .directory import recipe_for, with_directory
from .finetune import some_options
from .parsing import with_quiet

ENGINES = ("auto", "onnxruntime", "openvino", "torch")

PRECISIONS = ("fp32", "bf16", "int8")

EXAMPLES = """\b
Examples:
  dmnn-convert deploy chosen -o deployed                     (what budget -o wrote)
  dmnn-convert deploy runs/levels/final --level 0.5 -o deployed
  dmnn-convert deploy runs/0.5/final --data photos -o deployed        (gates, for single images)
  dmnn-convert deploy chosen --engine openvino --precision bf16 -o deployed
  dmnn-convert deploy chosen --precision int8 --data photos -o deployed
"""


OPTIONS = (
    *("data", "dataset", "on_bad_image", "held_out", "arch", "num_classes", "input_size"),
    *("mean", "std", "batch_size", "workers"),
)


@click.command("deploy", epilog=EXAMPLES)
@with_directory
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Write to this directory.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="auto: the faster one of ONNX Runtime and OpenVINO on this machine.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="bf16: only OpenVINO, on processors that have it; int8: calibrated on images of --data.",
)
@click.option(
    "--level",
    type=click.FloatRange(0, 1, min_open=True),
    help="Of a converted network: the share of the sub-blocks of every block that runs.",
)
@click.option(
    "--calibration-images",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Training images to calibrate int8 with, held-out ones first.",
)
@some_options(*OPTIONS)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text")
@with_quiet
def deploy_command(
    directory: Path,
    output: Path,
    engine: str,
    precision: str,
    level: float | None,
    calibration_images: int,
    config: str | None,
    form: str,
    **given: Any,
) -> None:
    """Write a level, a cascade, a dense network or gates as files that run without PyTorch.

    DIRECTORY is the output of budget -o, finetune, Cascade.save or save_level. The result holds an
    ONNX model for each network, deploy.json, run_deployed.py and a README that says how to run
    them. Their answers are compared with the network's before anything is written.

    A network with gates is written for single images, and timed beside the dense network, on images
    of --data if there are any: in an engine gates may take longer, and then a warning says so.
    """
    # PyTorch is imported where there is work, so that help comes at once.
    from .deployment import as_text, deployed

    recipe = recipe_for(directory, config, given)
    images = calibration_images if precision == "int8" else 0
    told = deployed(recipe, directory, output, engine, precision, level, images)
    click.echo(json.dumps(told, indent=1) if form == "json" else as_text(told, output))
