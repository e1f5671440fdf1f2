"""``dmnn-convert evaluate``: accuracy and paths of a saved network on the test images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..errors import ArgumentError
from .directory import recipe_for, with_directory
from .finetune import some_options
from .parsing import with_quiet

EXAMPLES = """\b
Examples:
  dmnn-convert evaluate runs/0.5/final
  dmnn-convert evaluate runs/0.5/best --source --frozen --plot paths.png
  dmnn-convert evaluate runs/0.5/final --images images.csv --images images.html
  dmnn-convert evaluate runs/levels/final --curve curve.png
  dmnn-convert evaluate converted --data photos --format json
  dmnn-convert evaluate deployed --data photos                (what deploy wrote, timed)
"""


OPTIONS = (
    *("data", "dataset", "on_bad_image", "held_out", "arch", "checkpoint", "num_classes"),
    *("input_size", "mean", "std", "batch_size", "workers", "device", "amp", "categories"),
)


@click.command("evaluate", epilog=EXAMPLES)
@with_directory
@some_options(*OPTIONS)
@click.option("--source", "dense", is_flag=True, help="Also evaluate the dense source.")
@click.option("--frozen", is_flag=True, help="Also freeze the gates to the most frequent path.")
@click.option("--plot", metavar="FILE", help="Draw FLOPs and execution rates into a file.")
@click.option(
    "--images",
    "files",
    metavar="FILE",
    multiple=True,
    help="Write the cost of each image: a .csv with a row for each, or an .html page with the "
    "easiest and hardest of each class, and rates by category (--categories).  May be repeated.",
)
@click.option(
    "--curve",
    metavar="FILE",
    help="Instead, compare levels, cascades and gates over FLOPs and time; a .csv, or a picture.",
)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table")
@with_quiet
@click.option("-v", "--verbose", is_flag=True, help="List every class.")
def evaluate_command(
    directory: Path,
    config: str | None,
    dense: bool,
    frozen: bool,
    plot: str | None,
    files: tuple[str, ...],
    curve: str | None,
    form: str,
    verbose: bool,
    **given: Any,
) -> None:
    """Evaluate a converted network or a cascade: accuracy, FLOPs of each image, paths taken.

    DIRECTORY is the output of a run, dmnn-convert -o, dmnn-convert budget -o or dmnn_convert.save.
    For a dense network (-N 0) it holds only the weights; --arch or the run's recipe names the
    architecture. Of what dmnn-convert deploy wrote, accuracy and time in its engine are shown.
    """
    # PyTorch is imported where there is work, so that help comes at once.
    from ..deployment import DESCRIPTION
    from ..distributed import joined
    from ..evaluation import Evaluation
    from ..finetune import workers_watched
    from ..report import check_picture, plot_evaluation
    from .assess import assess
    from .deployed import as_text, assess_deployed

    recipe = recipe_for(directory, config, given)
    if (directory / DESCRIPTION).is_file():
        if dense or frozen or plot or files or curve:
            raise ArgumentError(
                f"{directory}: is a deployed network, which is evaluated by --data alone; for "
                "--source, --frozen, --plot, --images and --curve give the network it was made of."
            )
        with workers_watched(), joined(recipe.device) as processes:
            figures = assess_deployed(recipe, directory, processes)
        click.echo(json.dumps(figures, indent=1) if form == "json" else as_text(directory, figures))
        return
    if curve:
        if dense or frozen or plot or files:
            raise ArgumentError(
                "--curve: evaluates policies, not images of one; give --source, --frozen, --plot "
                "and --images to a command of their own."
            )
        from .curve import draw_curve

        draw_curve(recipe, directory, Path(curve), form)
        return
    if plot:  # an unwritable file is reported before the work
        check_picture(Path(plot), "plot_evaluation")
    with workers_watched(), joined(recipe.device) as processes:
        report = assess(recipe, directory, processes, dense=dense, frozen=frozen, files=files)
        if not processes.is_main:
            return
        click.echo(report.as_json() if form == "json" else report.as_text(verbose))
        if plot and isinstance(report.evaluation, Evaluation):
            plot_evaluation(report.evaluation, plot)
        elif plot:
            click.echo(f"--plot: {directory} holds a network without gates to draw.", err=True)
