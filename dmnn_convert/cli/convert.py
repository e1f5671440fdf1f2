"""``dmnn-convert``: the conversion of a model, and the group of commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..config import MOST_SEED, ORDERS, SPLITS, TAIL_NORMS
from ..errors import ArgumentError, DmnnError
from .benchmark import benchmark_command
from .budget import budget_command
from .deploy import deploy_command
from .evaluate import evaluate_command
from .finetune import finetune_command
from .parsing import FORMS, image_size, sub_blocks, with_quiet

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
    help="Sub-blocks per block; or, repeated, of the blocks that --where would select by BLOCKS: "
    "-N 'layer[12].*=2' -N stage:3-=4. Blocks not named stay dense, unless a plain number is "
    "given for them.  [default: 2]",
)
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    default="matched",
    show_default=True,
    help="matched: the paper's; exact: keeps every block's function; nested: like exact, but each "
    "sub-block widens all hidden layers of those before it, and a low level costs least.",
)
@click.option(
    "--tail-norm",
    type=click.Choice(TAIL_NORMS),
    default="per-sub-block",
    show_default=True,
    help="A block's last batch norm: a copy in every sub-block, or one on the gated sum: "
    "cheaper, but a different model, whose training statistics see the zeros of closed gates.",
)
@click.option(
    "--order",
    type=click.Choice(ORDERS),
    default="source",
    show_default=True,
    help="Which hidden channels sub-blocks get: runs in the source's order, or the most important "
    "ones for the first sub-block, so that gates have something to choose between. With all gates "
    "on, both compute the same. (finetune uses importance when it converts.)",
)
@click.option(
    "--input-size",
    type=image_size,
    metavar="SIZE",
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
    "May be repeated: the union of them, without those marked !.",
)
@click.option(
    "--init-rate", type=float, default=0.9, show_default=True, help="Execution rate at the start."
)
@click.option(
    "--spread",
    type=float,
    default=0.0,
    show_default=True,
    help="Standard deviation over images, in nats, to which gates' margins are normalised. This "
    "keeps gates dynamic in training; 0 for the paper's gates. (finetune uses 3 when it converts.)",
)
@click.option(
    "--certainty",
    type=float,
    default=0.0,
    show_default=True,
    help="Execution rate at which the first sub-blocks of a block start; the last ones start at "
    "one minus that, and --init-rate is their mean. 0: all start alike. (finetune uses 0.93.)",
)
@click.option(
    "--seed",
    type=click.IntRange(0, MOST_SEED),
    default=0,
    show_default=True,
    help="Seed of all random weights.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="How to print.",
)
@with_quiet
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
    # PyTorch is imported where there is work, so that help comes at once.
    if options.pop("listing"):
        from ..io import zoo

        click.echo("\n".join(zoo.list_architectures()))
    elif options["arch"] is None:
        if any(context.get_parameter_source(name) is _COMMAND_LINE for name in options):
            raise click.UsageError("--arch is missing; --list shows the names.")
        click.echo(context.get_help())
    else:
        from .conversion import convert

        convert(**options)


cli.add_command(finetune_command)


cli.add_command(evaluate_command)


cli.add_command(benchmark_command)


cli.add_command(budget_command)


cli.add_command(deploy_command)


_COMMAND_LINE = click.core.ParameterSource.COMMANDLINE


def main() -> None:
    """Run the command; exit with 2 for bad usage, with 1 for any other error."""
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
