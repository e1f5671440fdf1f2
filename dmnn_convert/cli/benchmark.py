"""``dmnn-convert benchmark``: the time that a conversion saves on this machine."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..config import MOST_SEED, SPLITS, TAIL_NORMS
from .parsing import FORMS, image_size, with_quiet

EXAMPLES = """\b
Examples:
  dmnn-convert benchmark --arch resnet50
  dmnn-convert benchmark --arch mobilenet_v2 --batch 1 --batch 8 --rate 0.5 --threads 2
  dmnn-convert benchmark --converted run/final --data photos --batch 32
  dmnn-convert benchmark --arch resnet50 --plot speed.png --format json
  dmnn-convert benchmark --arch resnet50 --engine onnxruntime --engine openvino
  dmnn-convert benchmark --arch resnet50 --device cuda --dtype bfloat16 --batch 128
"""


class Setting(NamedTuple):
    """How to time: images, gates, rounds, and device."""

    batches: tuple[int, ...]
    rates: tuple[float, ...]
    threads: int | None
    rounds: int
    seed: int
    device: str
    dtype: str
    compiled: bool
    engines: tuple[str, ...]


ENGINES = ("torch", "onnxruntime", "openvino", "openvino-bf16")
DTYPES = ("float32", "bfloat16", "float16")


@click.command("benchmark", epilog=EXAMPLES)
@click.option("--arch", help="Network: resnet50, timm:NAME, FILE.py:factory.")
@click.option(
    "--converted", type=click.Path(path_type=Path), help="A saved conversion's directory."
)
@click.option("-N", "--num-sub-blocks", "n", type=int, default=2, show_default=True)
@click.option("--split", type=click.Choice(SPLITS), default="matched", show_default=True)
@click.option(
    "--tail-norm", type=click.Choice(TAIL_NORMS), default="per-sub-block", show_default=True
)
@click.option(
    "--input-size",
    type=image_size,
    metavar="SIZE",
    help=f"One image: {FORMS}.  [the architecture's own]",
)
@click.option("--batch", "batches", type=int, multiple=True, default=(1,), help="May be repeated.")
@click.option(
    "--rate",
    "rates",
    type=float,
    multiple=True,
    help="Execution rates to force, drawn for each image. May be repeated.  [0.3 0.5 0.7 1]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Time the model's own gates on these images: a folder with val/ or test/.",
)
@click.option("--threads", type=int, help="Threads.  [PyTorch's default]")
@click.option("--rounds", type=int, default=20, show_default=True, help="Rounds over all forms.")
@click.option(
    "--seed",
    type=click.IntRange(0, MOST_SEED),
    default=0,
    show_default=True,
    help="Seed of the forced gates.",
)
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Also time torch.compile of the source.")
@click.option(
    "--engine",
    "engines",
    type=click.Choice(ENGINES),
    multiple=True,
    help="Engine to time the dense network in as well; torch for none. May be repeated.  "
    "[all that are installed, in every precision of the processor]",
)
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True
)
@with_quiet
@click.option("--plot", type=click.Path(path_type=Path), help="Draw T against F into this file.")
@click.pass_context
def benchmark_command(
    context: click.Context,
    /,
    arch: str | None,
    converted: Path | None,
    batches: tuple[int, ...],
    rates: tuple[float, ...],
    data: Path | None,
    threads: int | None,
    rounds: int,
    seed: int,
    device: str,
    dtype: str,
    compiled: bool,
    engines: tuple[str, ...],
    form: str,
    plot: Path | None,
    **conversion: Any,
) -> None:
    """Time a converted network beside dense ones, all interleaved.

    F is the network's MACs over those of the dense one. T is its time, controllers included, over
    that of the fastest dense form: PyTorch's, and those of ONNX Runtime and OpenVINO if they are
    installed, each in its own process. "static" is the same layers with one path for all
    images, a narrower network of as many FLOPs. "saved" is the share of saved FLOPs that became
    saved time.
    """
    _check(batches, rates, rounds, threads)
    if converted is not None:
        _check_alone(context, conversion)
    # PyTorch is imported where there is work, so that help comes at once.
    from .timings import print_timings

    print_timings(
        arch,
        converted,
        conversion,
        data,
        Setting(batches, rates, threads, rounds, seed, device, dtype, compiled, engines),
        form,
        plot,
    )


def _check(
    batches: tuple[int, ...], rates: tuple[float, ...], rounds: int, threads: int | None
) -> None:
    if any(batch < 1 for batch in batches):
        raise click.BadParameter(f"--batch {min(batches)}: give 1 or more.")
    if any(not 0 <= rate <= 1 for rate in rates):
        raise click.BadParameter(f"--rate {rates}: rates lie between 0 and 1.")
    if rounds < 2:
        raise click.BadParameter(f"--rounds {rounds}: give 2 or more.")
    if threads is not None and threads < 1:
        raise click.BadParameter(f"--threads {threads}: give 1 or more.")


def _check_alone(context: click.Context, conversion: Collection[str]) -> None:
    given = click.core.ParameterSource.COMMANDLINE
    odd = [
        "-N" if name == "n" else f"--{name.replace('_', '-')}"
        for name in conversion
        if context.get_parameter_source(name) is given
    ]
    if odd:
        raise click.UsageError(f"{', '.join(odd)}: a saved conversion has its own; leave it out.")
