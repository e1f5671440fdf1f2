"""``dmnn-convert evaluate``: what a saved network does on the test images of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import zoo
from ..checkpoint import load
from ..convert import Dynamized
from ..errors import ArgumentError
from ..evaluate import evaluate, evaluate_dense
from ..force import force_gates
from ..report import EvaluationReport, plot_evaluation
from . import data as images
from .distributed import Processes, joined
from .network import build_source, is_trained
from .recipe import Recipe, read_recipe
from .run import CONFIG
from .testing import evaluation_of

EXAMPLES = """\b
Examples:
  dmnn-convert evaluate runs/0.5/final
  dmnn-convert evaluate runs/0.5/best --source --frozen --plot paths.png
  dmnn-convert evaluate converted --data photos --format json
"""


@click.command("evaluate", epilog=EXAMPLES)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option(
    "--config",
    metavar="FILE",
    help=f"Options of the data and the source as YAML.  [{CONFIG} beside DIRECTORY, if there]",
)
@click.option("--data", help="Folder with val/ or test/, a folder of images a class.")
@click.option("--arch", help="Source network, where the directory does not name one.")
@click.option("--checkpoint", help="Weights of the source, for --source.")
@click.option("--input-size", type=int, help="Pixels a side.")
@click.option("--batch-size", type=int, help="Images a batch.")
@click.option("--workers", type=int, help="Loader processes.")
@click.option("--device", help="cpu, cuda, …")
@click.option("--source", "dense", is_flag=True, help="Evaluate the dense source, too.")
@click.option("--frozen", is_flag=True, help="And the gates frozen to the most frequent path.")
@click.option("--plot", metavar="FILE", help="Draw FLOPs and execution rates into a file.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table")
@click.option("-v", "--verbose", is_flag=True, help="List every class.")
def evaluate_command(
    directory: Path,
    config: str | None,
    dense: bool,
    frozen: bool,
    plot: str | None,
    form: str,
    verbose: bool,
    **given: Any,
) -> None:
    """Evaluate a converted network: accuracy, FLOPs of each image, and the paths taken."""
    beside = directory.parent / CONFIG
    options = read_recipe(config) if config else _found_beside(beside)
    options |= {name: value for name, value in given.items() if value is not None}
    recipe = Recipe().with_changes(options)
    with joined(recipe.device) as processes:
        report = assess(recipe, directory, processes, dense=dense, frozen=frozen)
        if not processes.leads:
            return
        if plot:
            plot_evaluation(report.evaluation, plot)
        click.echo(report.as_json() if form == "json" else report.as_text(verbose))


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
    if dense and not is_trained(recipe):
        raise ArgumentError("--source: the source's weights are missing; give --checkpoint FILE.")
    source = build_source(recipe).model if dense else None
    data = images.open_data(recipe)
    side, statistics = table.input_size[-1], images.statistics(recipe, model)
    transform = images.test_transform(side, *statistics)
    loader = images.test_loader(recipe, data.test, transform, processes)
    batches, options = evaluation_of(recipe, loader, data.classes, processes)
    model.to(processes.device)
    found = evaluate(model, table, batches, **options)
    fixed = None
    if frozen:
        with force_gates(model, found.frozen_path):
            fixed = evaluate(model, table, batches, **options)
    before = None
    if source is not None:
        before = evaluate_dense(source.to(processes.device), batches, **options)
    return EvaluationReport(str(directory), found, before, fixed)


def _loaded(directory: Path, recipe: Recipe) -> Dynamized:
    if recipe.arch is None or zoo.is_zoo_name(recipe.arch):
        return load(directory)
    if recipe.num_classes is None:
        return load(directory, model=zoo.build(recipe.arch))
    try:
        return load(directory, model=zoo.build(recipe.arch, num_classes=recipe.num_classes))
    except ArgumentError:
        return load(directory, model=build_source(recipe).model)
