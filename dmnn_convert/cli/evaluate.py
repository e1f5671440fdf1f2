"""``dmnn-convert evaluate``: what a saved network does on the test images of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from torch import nn

from ..data import image_size, images, preprocessing, test_loader, test_transform
from ..distributed import Processes, joined
from ..errors import ArgumentError
from ..evaluation import DenseEvaluation, Evaluation, evaluate, evaluate_dense
from ..finetune import (
    CONFIG,
    EvaluationBatches,
    Recipe,
    build_source,
    check_logits,
    evaluation_of,
    read_recipe,
    workers_watched,
)
from ..flops import FlopsTable
from ..io import CONFIG as CONVERSION
from ..io import WEIGHTS, load, load_source_checkpoint, read_saved, zoo
from ..nn import force_gates
from ..report import EvaluationReport, check_picture, plot_evaluation
from .finetune import chosen, some_options

EXAMPLES = """\b
Examples:
  dmnn-convert evaluate runs/0.5/final
  dmnn-convert evaluate runs/0.5/best --source --frozen --plot paths.png
  dmnn-convert evaluate runs/levels/final --curve curve.png
  dmnn-convert evaluate converted --data photos --format json
"""


OPTIONS = (
    *("data", "dataset", "on_bad_image", "arch", "checkpoint", "num_classes", "input_size"),
    *("batch_size", "workers", "device", "amp"),
)


@click.command("evaluate", epilog=EXAMPLES)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option(
    "--config",
    metavar="FILE",
    help=f"Options of the data and the source as YAML.  [{CONFIG} beside DIRECTORY, if there]",
)
@some_options(*OPTIONS)
@click.option("--source", "dense", is_flag=True, help="Evaluate the dense source, too.")
@click.option("--frozen", is_flag=True, help="And the gates frozen to the most frequent path.")
@click.option("--plot", metavar="FILE", help="Draw FLOPs and execution rates into a file.")
@click.option(
    "--curve",
    metavar="FILE",
    help="Instead, compare levels, cascades and gates over FLOPs and time; a .csv, or a picture.",
)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table")
@click.option("-v", "--verbose", is_flag=True, help="List every class.")
def evaluate_command(
    directory: Path,
    config: str | None,
    dense: bool,
    frozen: bool,
    plot: str | None,
    curve: str | None,
    form: str,
    verbose: bool,
    **given: Any,
) -> None:
    """Evaluate a converted network: accuracy, FLOPs of each image, and the paths taken.

    DIRECTORY is what a run, dmnn-convert -o or dmnn_convert.save wrote. Of a dense network (-N 0)
    it holds weights alone, for which --arch or the run's recipe names the architecture.
    """
    beside = directory.parent / CONFIG
    options = read_recipe(config) if config else _found_beside(beside)
    recipe = Recipe().with_changes(options | chosen(given))
    if curve:
        from .curve import draw_curve

        draw_curve(recipe, directory, Path(curve), form)
        return
    if plot:  # what cannot be written is said before the work
        check_picture(Path(plot), "plot_evaluation")
    with joined(recipe.device) as processes:
        with workers_watched():
            report = assess(recipe, directory, processes, dense=dense, frozen=frozen)
        if not processes.is_main:
            return
        click.echo(report.as_json() if form == "json" else report.as_text(verbose))
        if plot and isinstance(report.evaluation, Evaluation):
            plot_evaluation(report.evaluation, plot)
        elif plot:
            click.echo(f"--plot: {directory} holds a network without gates to draw.", err=True)


def _found_beside(file: Path) -> dict[str, Any]:
    """Return the options of a run's recipe, but for an architecture that is code to run."""
    if not file.is_file():
        return {}
    options = read_recipe(file)
    if options.get("arch") and not zoo.is_zoo_name(options["arch"]):
        click.echo(
            f"{file} names {options['arch']}, which is code; --arch or --config allows it to run.",
            err=True,
        )
        del options["arch"]
    return options


def assess(
    recipe: Recipe, directory: Path, processes: Processes, *, dense: bool, frozen: bool
) -> EvaluationReport:
    """Evaluate a saved network, and what it is compared with, on a recipe's test images.

    Raises:
        ArgumentError: if the data or the source cannot be had.
        CheckpointError: if the directory holds no converted network.
    """
    model, table = _loaded(directory, recipe)
    if frozen and table is None:
        raise ArgumentError(f"--frozen: {directory} holds a network without gates.")
    source = _source(recipe) if dense else None
    size = _image_size(recipe, directory, model, table)
    test, classes = images.open_test(recipe)
    check_logits(recipe, model, size, len(classes))
    transform = test_transform(preprocessing(recipe, model, size[-1]))
    loader = test_loader(recipe, test, transform, processes)
    batches, options = evaluation_of(recipe, loader, classes, processes)
    model.to(processes.device)
    if table is None:
        found, fixed = evaluate_dense(model, batches, **options), None
    else:
        found, fixed = _with_gates(model, table, batches, options, frozen=frozen)
    before = None
    if source is not None:
        before = evaluate_dense(source.to(processes.device), batches, **options)
    return EvaluationReport(str(directory), found, before, fixed, batches.all_skipped())


def _with_gates(
    model: nn.Module,
    table: FlopsTable,
    batches: EvaluationBatches,
    options: Mapping[str, Any],
    *,
    frozen: bool,
) -> tuple[DenseEvaluation, Evaluation | None]:
    found = evaluate(model, table, batches, **options)
    if not frozen:
        return found, None
    with force_gates(model, found.frozen_path):
        return found, evaluate(model, table, batches, **options)


def _source(recipe: Recipe) -> nn.Module:
    if not recipe.trained:
        raise ArgumentError("--source: the source's weights are missing; give --checkpoint FILE.")
    source, new_classifier = build_source(recipe)
    if new_classifier:
        raise ArgumentError(
            f"--source: with {recipe.num_classes} classes the source has a new classifier, which "
            "was never trained: there is nothing to compare with."
        )
    return source


def _image_size(
    recipe: Recipe, directory: Path, model: nn.Module, table: FlopsTable | None
) -> tuple[int, ...]:
    if table is None:
        return image_size(recipe, model)
    if recipe.input_size not in (None, table.input_size[-1]):
        raise ArgumentError(
            f"--input-size {recipe.input_size}: {directory} is for images {table.input_size}; "
            "leave it out."
        )
    return table.input_size


def _loaded(directory: Path, recipe: Recipe) -> tuple[nn.Module, FlopsTable | None]:
    """Load a converted network with its table, or a dense one from its weights alone."""
    if (directory / WEIGHTS).is_file() and not (directory / CONVERSION).exists():
        model = _built(directory, recipe.arch, recipe.num_classes)
        load_source_checkpoint(model, directory / WEIGHTS)
        return model, None
    saved = read_saved(directory)
    named = saved.arch if saved.arch and zoo.is_zoo_name(saved.arch) else recipe.arch
    classes = recipe.num_classes if saved.num_classes is None else saved.num_classes
    return load(directory, model=_built(directory, named, classes))


def _built(directory: Path, arch: str | None, num_classes: int | None) -> nn.Module:
    if arch is None:
        raise ArgumentError(f"{directory}: names no architecture of a zoo; give --arch.")
    return zoo.build(arch, num_classes=num_classes)
