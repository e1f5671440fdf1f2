"""``dmnn-convert budget``: the best policy of a saved network at a budget of FLOPs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..budget import CHOICES, Cascade, Chosen, choose, measured
from ..distributed import Processes, joined
from ..finetune import CONFIG, Recipe, read_recipe
from ..io import Cascade as SavedCascade
from ..io import save, save_level
from .evaluate import _found_beside
from .finetune import chosen, some_options
from .subject import opened

EXAMPLES = """\b
Examples:
  dmnn-convert budget runs/0.5/final --target 0.6 -o deployed
  dmnn-convert budget runs/levels/final --data photos --target 0.4 --policy cascade -o deployed
  dmnn-convert budget runs/levels/final --data photos --target 0.4 --format json
"""


OPTIONS = (
    *("data", "dataset", "on_bad_image", "held_out", "arch", "num_classes", "batch_size"),
    *("workers", "device"),
)


@click.command("budget", epilog=EXAMPLES)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option(
    "--config",
    metavar="FILE",
    help=f"Options of the data and the source as YAML.  [{CONFIG} beside DIRECTORY, if there]",
)
@click.option(
    "--target",
    type=click.FloatRange(0, min_open=True),
    required=True,
    help="Mean FLOPs of an image, of all runs, over the source's.",
)
@click.option(
    "--policy",
    type=click.Choice(CHOICES),
    default="auto",
    show_default=True,
    help="level: one narrower network for all images; cascade: a narrow one, and a wider one where "
    "that is unsure; gates: the network's own, with another offset; auto: the best of them.",
)
@some_options(*OPTIONS)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Save what is chosen to this directory.",
)
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
    """Choose how a converted network is to meet a budget of FLOPs, and save that.

    The choice is made on training images that were held out from training, and measured on the
    test images. DIRECTORY is what a run, dmnn-convert -o or dmnn_convert.save wrote.
    """
    beside = directory.parent / CONFIG
    options = read_recipe(config) if config else _found_beside(beside)
    recipe = Recipe().with_changes(options | chosen(given))
    with joined(recipe.device) as processes:
        described = _budget(recipe, directory, processes, target, policy, output)
    click.echo(json.dumps(described, indent=1) if form == "json" else _as_text(described))


def _budget(
    recipe: Recipe,
    directory: Path,
    processes: Processes,
    target: float,
    policy: str,
    output: Path | None,
) -> dict[str, Any]:
    subject = opened(recipe, directory, processes)
    model, held_out, test = subject.model, subject.held_out, subject.test
    best, notes = choose(model, held_out, target, policy, progress=True)
    top1, ratio = measured(best, model, test)
    if output is not None:
        _save(best, model, output, subject.arch, subject.num_classes)
    return {
        "policy": best.policy,
        "name": best.name,
        "target": target,
        "held_out": {"flops_ratio": best.flops_ratio, "top1": best.top1},
        "test": {"flops_ratio": ratio, "top1": top1},
        "notes": list(notes),
        "output": None if output is None else str(output),
    }


def _save(best: Chosen, model: Any, output: Path, arch: str | None, classes: int | None) -> None:
    if isinstance(best.network, Cascade):
        found = best.network
        thresholds = found.thresholds.tolist()
        cascade = SavedCascade([*found.networks], thresholds, mean=found.mean)
        cascade.fitted = found.fitted
        cascade.save(output, arch, num_classes=classes)
    elif best.level is not None:
        save_level(model, best.level, output, arch=arch, num_classes=classes)
    else:
        save(best.network, output, arch=arch, num_classes=classes)


_LOADERS = {
    "cascade": "dmnn_convert.Cascade.load",
    "level": "dmnn_convert.load_level",
    "gates": "dmnn_convert.load",
}


def _as_text(described: dict[str, Any]) -> str:
    lines = [f"{described['policy']} {described['name']}"]
    for name, where in (("held_out", "held-out images"), ("test", "test images")):
        own = described[name]
        lines.append(
            f"  {where + ':':17}top-1 {own['top1']:.2f} %  at {own['flops_ratio']:.3f} of the FLOPs"
        )
    lines += described["notes"]
    if described["output"]:
        loader = _LOADERS[described["policy"]]
        lines.append(f"Saved. Load it with {loader}({described['output']!r}).")
    return "\n".join(lines)
