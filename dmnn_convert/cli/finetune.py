"""``dmnn-convert finetune``: the recipe's options as options of a command."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import UNSET, kind_inside, kind_of, may_be_none
from ..finetune import (
    CONFIG,
    RESULT,
    Recipe,
    built_in,
    read_recipe,
)
from .parsing import picture_size, with_quiet

if TYPE_CHECKING:
    from ..finetune import Result

EXAMPLES = """\b
Examples:
  dmnn-convert finetune --arch resnet50 --checkpoint best.pth --data photos --target 0.5
  dmnn-convert finetune --arch timm:mobilenetv2_100 --pretrained --data photos --num-classes 12
  dmnn-convert finetune --config my.yaml --target 0.7 --output runs/0.7
  dmnn-convert finetune --config runs/0.7/recipe.yaml --output runs/0.7 --resume
  torchrun --nproc-per-node=4 -m dmnn_convert finetune --config my.yaml
"""


_TYPES: dict[str, Any] = {"str": str, "int": int, "float": float}


def _or_none(kind: str) -> Callable[[str], Any]:
    """Return a parser of a number, or of the word that unsets an option of a file."""

    def read(text: str) -> Any:
        return text if text == UNSET else _TYPES[kind](text)

    read.__name__ = kind  # click's word for the value in the help
    return read


def options_of_recipe(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each field of the recipe; its default shows in the help only."""
    names = (entry.name for entry in dataclasses.fields(Recipe))
    decorated: Callable[..., Any] = some_options(*names)(command)
    return decorated


def some_options(*names: str) -> Callable[..., Any]:
    """Add options for some fields of the recipe."""
    declared = {entry.name: entry for entry in dataclasses.fields(Recipe)}

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            command = _option(declared[name])(command)
        return command

    return add


def _option(entry: dataclasses.Field[Any]) -> Callable[..., Any]:
    name, kind = entry.name.replace("_", "-"), kind_of(str(entry.type))
    text = str(entry.metadata["help"])
    if entry.default not in (None, ()) and kind != "bool":
        text += f"  [{entry.default}]"
    if kind == "bool":
        default = "on" if entry.default else "off"
        return click.option(f"--{name}/--no-{name}", default=None, help=f"{text}  [{default}]")
    flags = ("-N", "--num-sub-blocks", "n") if entry.name == "n" else (f"--{name}",)
    if entry.name == "input_size":
        return click.option(*flags, type=picture_size, metavar="SIZE", help=text)
    if kind != "tuple":
        return click.option(*flags, type=_type_of(entry), default=None, help=text)
    inside = kind_inside(str(entry.type))
    if inside == "str":
        return click.option(*flags, multiple=True, help=f"{text}  May be repeated.")
    read, text = _with_commas(_TYPES[inside]), f"{text}  With commas, or repeated."
    return click.option(*flags, multiple=True, callback=read, metavar="NUMBERS", help=text)


def _with_commas(kind: Callable[[str], Any]) -> Callable[..., tuple[Any, ...]]:
    """Return a parser of numbers, separated by commas or given several times."""

    def read(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[Any, ...]:
        parts = [part.strip() for text in given for part in text.split(",")]
        try:
            return tuple(part if part == UNSET else kind(part) for part in parts)
        except ValueError as error:
            raise click.BadParameter(f"{', '.join(parts)}: give numbers.") from error

    return read


def _type_of(entry: dataclasses.Field[Any]) -> Any:
    annotation, choices = str(entry.type), entry.metadata.get("choices")
    if choices:
        return click.Choice((*choices, UNSET) if may_be_none(annotation) else choices)
    kind = kind_inside(annotation)
    return _or_none(kind) if kind != "str" and may_be_none(annotation) else _TYPES[kind]


@click.command("finetune", epilog=EXAMPLES)
@click.option(
    "--config",
    metavar="FILE",
    help=f"Options as YAML, or a recipe by name: {', '.join(built_in())}. "
    f"Options on the command line take precedence; {UNSET} removes one that the file sets.",
)
@click.option("--resume", is_flag=True, help="Continue the run that --output holds.")
@options_of_recipe
@with_quiet
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help=f"How to print the result: in a few lines, or all of {RESULT}.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show all figures of each epoch.")
def finetune_command(
    config: str | None, resume: bool, form: str, verbose: bool, **given: Any
) -> None:
    """Convert a trained network and fine-tune it to a FLOPs target.

    Leaves a dynamic network in OUTPUT/best and OUTPUT/final, its figures in result.json, one row
    per epoch in log.csv, and the whole configuration in recipe.yaml.
    """
    from ..finetune import finetune  # PyTorch is imported where there is work

    options = read_recipe(config) if config else {}
    recipe = Recipe().with_changes(options | chosen(given))
    result = finetune(recipe, resume=resume, verbose=verbose)
    if not result.is_main:
        return
    folder = Path(recipe.output)
    if form == "json":
        click.echo((folder / RESULT).read_text(encoding="utf-8").rstrip())
    else:
        click.echo(summary_of(result, folder))


def chosen(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given to a command."""
    return {name: value for name, value in given.items() if value not in (None, ())}


def summary_of(result: Result, folder: Path) -> str:
    """Return the result of a run in a few lines."""
    figures = result.evaluation.to_dict()
    lines = [f"top-1 {figures['top1']:.2f} %  after {result.minutes:.1f} minutes"]
    if "flops_ratio" in figures:
        network, gated = figures["network_flops_ratio"], figures["flops_ratio"]
        lines.append(
            f"FLOPs of the network {network['mean']:.3f} of the source's "
            f"(± {network['std']:.3f} over images), gated {gated['mean']:.3f}; "
            f"{figures['distinct_paths']} paths, {figures['path_entropy']:.1f} bits"
        )
        lines.append(
            f"dmnn-convert evaluate {folder / 'final'} --config {folder / CONFIG} says more."
        )
    for level, found in result.levels.items():
        own = found.to_dict()
        lines.append(
            f"level {level:g}: top-1 {own['top1']:.2f} %  at "
            f"{own['network_flops_ratio']['mean']:.3f} of the FLOPs"
        )
    lines.append(f"Kept in {folder / 'final'}.")
    if result.levels:
        again = f"{folder / 'final'} --config {folder / CONFIG}"
        lines.append(f"Next: dmnn-convert budget {again} --target 0.6 -o chosen")
    return "\n".join(lines)
