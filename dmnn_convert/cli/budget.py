"""``dmnn-convert budget``: the best policy of a saved network at a budget of FLOPs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..config import BUDGET_POLICIES
from .directory import recipe_for, same_options, with_directory
from .finetune import some_options
from .parsing import with_quiet

EXAMPLES = """\b
Examples:
  dmnn-convert budget runs/0.5/final --target 0.6 -o deployed
  dmnn-convert budget runs/levels/final --data photos --target 0.4 --policy cascade -o deployed
  dmnn-convert budget runs/levels/final --data photos --target 0.4 --format json
"""


OPTIONS = (
    *("data", "dataset", "on_bad_image", "held_out", "arch", "num_classes", "input_size"),
    *("mean", "std", "batch_size", "workers", "device"),
)


@click.command("budget", epilog=EXAMPLES)
@with_directory
@click.option(
    "--target",
    type=click.FloatRange(0, min_open=True),
    required=True,
    help="Mean FLOPs of an image, of all runs, over the source's.",
)
@click.option(
    "--policy",
    type=click.Choice(BUDGET_POLICIES),
    default="auto",
    show_default=True,
    help="level: one narrower network for all images; cascade: a narrow one, and a wider one if "
    "that is unsure; gates: the network's own, with another offset; auto: the best of them.",
)
@some_options(*OPTIONS)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Save what is chosen to this directory.",
)
@with_quiet
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table")
def budget_command(
    directory: Path,
    config: str | None,
    target: float,
    policy: str,
    output: Path | None,
    form: str,
    **given: Any,
) -> None:
    """Choose the best policy of a converted network at a budget of FLOPs, and save it.

    The choice is made on training images that were held out from training, and measured on the
    test images. DIRECTORY is the output of a run, dmnn-convert -o or dmnn_convert.save.
    """
    # PyTorch is imported where there is work, so that help comes at once.
    from ..distributed import joined
    from .choice import as_text, choice_of

    recipe = recipe_for(directory, config, given)
    with joined(recipe.device) as processes:
        described = choice_of(recipe, directory, processes, target, policy, output)
    if form == "json":
        click.echo(json.dumps(described, indent=1))
        return
    click.echo(as_text(described))
    if output is not None:
        again = same_options(directory, config, given)
        click.echo(f"Next: dmnn-convert deploy {output}{again} -o deployed")
