"""``dmnn-convert benchmark``: the time that a conversion saves on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor, nn

from ..config import MOST_SEED, SPLITS, TAIL_NORMS
from ..convert import Dynamized, dynamize
from ..data import Augmented, collate, open_test, preprocessing, test_transform
from ..dryrun import own_size
from ..errors import ArgumentError
from ..finetune import FORMS, Recipe, image_size
from ..io import load, read_saved, zoo
from ..report import as_table, check_picture, plot_timings, setting
from ..runtime import Benchmark, Timing

EXAMPLES = """\b
Examples:
  dmnn-convert benchmark --arch resnet50
  dmnn-convert benchmark --arch mobilenet_v2 --batch 1 --batch 8 --rate 0.5 --threads 2
  dmnn-convert benchmark --converted run/final --data photos --batch 32
  dmnn-convert benchmark --arch resnet50 --plot speed.png --format json
  dmnn-convert benchmark --arch resnet50 --device cuda --dtype bfloat16 --batch 128
"""


_DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


_BATCHES = 8


"""Number of batches of real images that the rounds take in turn."""


class _Subject(NamedTuple):
    source: nn.Module
    converted: Dynamized
    size: tuple[int, ...]


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
    "--input-size", type=image_size, help=f"One image: {FORMS}.  [the architecture's own]"
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
@click.option("--dtype", type=click.Choice(list(_DTYPES)), default="float32", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Also time torch.compile of the source.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True
)
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
    form: str,
    plot: Path | None,
    **conversion: Any,
) -> None:
    """Time a converted network beside dense ones, all interleaved.

    F is the network's MACs over those of the dense one. T is its time over that of the fastest
    dense form, controllers included. "static" is the same layers with one path for all images, a
    narrower network of as many FLOPs. "saved" is the share of saved FLOPs that became saved time.
    """
    _check(batches, rates, rounds, threads)
    if converted is not None:
        _check_alone(context, conversion)
    if plot:  # what cannot be written is reported before the work
        check_picture(plot, "plot_timings")
    torch.manual_seed(seed)
    subject = _subject(arch, converted, _place(device), _DTYPES[dtype], conversion)
    forced = rates or (() if data else (0.3, 0.5, 0.7, 1.0))
    timings: list[Timing] = []
    for batch in batches:
        images = [b.to(device, _DTYPES[dtype]) for b in _images(subject, data, arch, batch, seed)]
        bench = Benchmark(subject.source, *subject.converted, images, threads, compiled=compiled)
        timings += bench.run(forced, rounds=rounds, seed=seed, own=data is not None)
    shown: dict[str, Callable[[], str]] = {
        "table": lambda: f"{setting(_place(device), dtype, threads)}\n{as_table(timings)}",
        "json": lambda: json.dumps([t.to_dict() for t in timings], indent=1),
    }
    click.echo(shown[form]())
    if plot:
        plot_timings(timings, plot)


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


def _subject(
    arch: str | None,
    converted: Path | None,
    place: torch.device,
    dtype: torch.dtype,
    conversion: dict[str, Any],
) -> _Subject:
    if converted is not None:
        saved = read_saved(converted)
        named = arch or (saved.arch if saved.arch and zoo.is_zoo_name(saved.arch) else None)
        if named is None:
            raise ArgumentError(f"{converted}: does not name a network of the zoos; give --arch.")
        source = zoo.build(named, num_classes=saved.num_classes)
        result = load(converted, model=zoo.build(named, num_classes=saved.num_classes))
        size = saved.config.input_size
    elif arch is not None:
        source = zoo.build(arch)
        size = conversion["input_size"] or own_size(source)
        how = {"split": conversion["split"], "tail_norm": conversion["tail_norm"]}
        result = dynamize(source, conversion["n"], input_size=size, **how)
    else:
        raise click.UsageError("give --arch or --converted.")
    model = result.model.to(place, dtype).eval()
    return _Subject(source.to(place, dtype).eval(), Dynamized(model, result.table), size)


def _place(device: str) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(
            f"--device {device}: is not available ({str(error).splitlines()[0]}); give cpu."
        ) from error
    return place


def _images(
    subject: _Subject, data: Path | None, arch: str | None, batch: int, seed: int
) -> list[Tensor]:
    if data is None:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(batch, *subject.size, generator=generator)]
    recipe = Recipe(arch=arch, data=str(data), input_size=subject.size[-1])
    test, _ = open_test(recipe)
    transform = test_transform(preprocessing(recipe, subject.source))
    count = len(test)  # type: ignore[arg-type]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    keys = [(0, i) for i in order[: batch * _BATCHES]]
    loaded = collate([Augmented(test, transform, seed)[key] for key in keys])
    if loaded.bad:
        file, reason = loaded.bad[0]
        raise ArgumentError(f"{file}: cannot be read ({reason}); repair or remove it.")
    if len(loaded.images) < batch:
        raise ArgumentError(f"{data}: has fewer than {batch} test images; give a smaller --batch.")
    whole = len(loaded.images) // batch * batch
    return list(loaded.images[:whole].split(batch))
