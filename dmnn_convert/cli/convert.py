"""The command ``dmnn-convert``: words and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from .. import __version__
from ..config import MOST_SEED, ORDERS, SPLITS, TAIL_NORMS, GateConfig
from ..convert import Dynamized, dynamize
from ..dryrun import own_size
from ..errors import ArgumentError, ConversionError, DmnnError
from ..evaluation import block_errors
from ..find import find_blocks
from ..finetune import FORMS, LAST, image_size
from ..io import load_source_checkpoint, save, zoo
from ..nn import multi_path_blocks
from ..report import ConversionReport
from .benchmark import benchmark_command
from .budget import budget_command
from .evaluate import evaluate_command
from .finetune import finetune_command
from .parsing import sub_blocks

EXAMPLES = """\b
Examples:
  dmnn-convert --arch resnet101
  dmnn-convert --arch timm:mobilenetv2_100 -N 3 --verbose
  dmnn-convert --arch resnet50 --checkpoint best.pth --num-classes 10 --split exact -o converted
  dmnn-convert --arch resnet50 -N stage:2=2 -N stage:3-=4         (the first stage stays dense)
  dmnn-convert --arch resnet101 --where '!stage:1' --where '!layer4.2'
  dmnn-convert --arch my_nets.py:make_net --input-size 32 --format json
"""


@click.group(
    invoke_without_command=True,
    subcommand_metavar="[COMMAND ...]",
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--arch",
    metavar="NAME",
    help="resnet50 (torchvision), timm:mobilenetv2_100, package.module:factory or "
    "path/to/file.py:factory (runs that code).",
)
@click.option(
    "-N",
    "--num-sub-blocks",
    multiple=True,
    default=("2",),
    callback=sub_blocks,
    metavar="[BLOCKS=]N",
    help="Sub-blocks a block; or, repeated, of the blocks that --where would select by BLOCKS: "
    "-N 'layer[12].*=2' -N stage:3-=4. Blocks not named stay dense, unless a plain number is "
    "given for them.  [default: 2]",
)
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    default="matched",
    show_default=True,
    help="matched: the paper's; exact: keeps every block's function.",
)
@click.option(
    "--tail-norm",
    type=click.Choice(TAIL_NORMS),
    default="per-sub-block",
    show_default=True,
    help="A block's last batch norm: a copy in every sub-block, or one on the gated sum: cheaper, "
    "and a different model, whose training statistics see the zeros of gates that are off.",
)
@click.option(
    "--order",
    type=click.Choice(ORDERS),
    default="source",
    show_default=True,
    help="Which hidden channels sub-blocks get: runs in the source's order, or the first one those "
    "that count most, so that gates have something to choose between; with all gates on, both are "
    "the same. (finetune takes importance when it converts.)",
)
@click.option(
    "--input-size",
    type=image_size,
    help=f"One image: {FORMS}.  [default: the architecture's own, else 3,224,224]",
)
@click.option("--num-classes", type=int, help="Classes of the classifier.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Weights of the source: a state dict by torch.save, or .safetensors.",
)
@click.option("--pretrained", is_flag=True, help="The zoo's own weights; needs a network.")
@click.option(
    "--where",
    multiple=True,
    metavar="BLOCKS",
    help="Convert only these: a name or pattern ('layer[34].*'), kind:bottleneck, stage:2-4 or "
    "depth:3- (--verbose lists them; both count from 1); with ! all but these ('!stage:1'). "
    "May be repeated: all that any selects, less those with !.",
)
@click.option(
    "--init-rate", type=float, default=0.9, show_default=True, help="Execution rate to start from."
)
@click.option(
    "--spread",
    type=float,
    default=0.0,
    show_default=True,
    help="Deviation over images to which gates' margins are normalised, in nats, so that gates "
    "stay dynamic in training; 0 for the paper's gates. (finetune takes 3 when it converts.)",
)
@click.option(
    "--certainty",
    type=float,
    default=0.0,
    show_default=True,
    help="Execution rate that the first sub-blocks of a block start from, the last ones from one "
    "minus that, with --init-rate as their mean; 0: all start alike. (finetune takes 0.93.)",
)
@click.option(
    "--seed",
    type=click.IntRange(0, MOST_SEED),
    default=0,
    show_default=True,
    help="For all random weights.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="How to print.",
)
@click.option("-v", "--verbose", is_flag=True, help="List every block and sub-block.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Save the converted model to this directory.",
)
@click.option("--list", "listing", is_flag=True, help="List the architectures by name.")
@click.version_option(__version__, prog_name="dmnn-convert")
@click.pass_context
def cli(context: click.Context, /, **options: Any) -> None:
    """Turn a CNN into a Dynamic Multi-path Neural Network.

    Every residual or inverted-residual block becomes several sub-blocks, and tiny gate controllers
    choose for each image which of them run. FLOPs are multiply-accumulates (MACs).
    """
    if context.invoked_subcommand is not None:
        return
    if options["listing"]:
        click.echo("\n".join(zoo.list_architectures()))
    elif options["arch"] is None:
        if any(context.get_parameter_source(name) is _COMMAND_LINE for name in options):
            raise click.UsageError("--arch is missing; --list shows the names.")
        click.echo(context.get_help())
    else:
        _convert(**options)


cli.add_command(finetune_command)


cli.add_command(evaluate_command)


cli.add_command(benchmark_command)


cli.add_command(budget_command)


_COMMAND_LINE = click.core.ParameterSource.COMMANDLINE


def _convert(
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
    listing: bool,
) -> None:
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
    converted = dynamize(
        source,
        num_sub_blocks,
        split=split,
        gate=GateConfig(init_rate=init_rate, spread=spread, certainty=certainty),
        input_size=size,
        where=where or None,
        tail_norm=tail_norm,
        order=order,
    )
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
    return f"Saved to {output}. Load it with dmnn_convert.load({str(output)!r}{own})."


def main() -> None:
    """Run the command; exit with 2 for bad usage, with 1 for what could not be done."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("Aborted.", err=True)
        sys.exit(1)
    except ArgumentError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except DmnnError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
