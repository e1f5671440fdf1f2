"""The timings that ``dmnn-convert benchmark`` prints and draws."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor, nn

from ..convert import Dynamized, dynamize
from ..data import Augmented, DataOptions, collate, open_test, preprocessing, test_transform
from ..dryrun import own_size
from ..errors import ArgumentError
from ..io import load, read_saved, zoo
from ..report import as_table, check_picture, plot_timings, setting
from ..runtime import Benchmark, Engine, Timing, is_installed
from ..text import first_line
from .benchmark import Setting

_BATCHES = 8
"""Number of batches of real images that the rounds take in turn."""


class _Subject(NamedTuple):
    source: nn.Module
    converted: Dynamized
    size: tuple[int, ...]


def print_timings(
    arch: str | None,
    converted: Path | None,
    conversion: dict[str, Any],
    data: Path | None,
    how: Setting,
    form: str,
    plot: Path | None,
) -> None:
    """Time a network, saved or converted now, and print the timings as a table or JSON.

    Args:
        arch: the source's name; None if the saved conversion names it.
        converted: the directory of a saved conversion, or None to convert.
        conversion: how to convert.
        data: a folder of images to time the model's own gates on.
        how: the setting.
        form: "table" or "json".
        plot: a file to draw T against F into.

    Raises:
        click.UsageError: if no network is named.
        ArgumentError: for a picture, device or data that is not available.
    """
    if plot:  # an unwritable file is reported before the work
        check_picture(plot, "plot_timings")
    torch.manual_seed(how.seed)
    place, dtype = _place(how.device), getattr(torch, how.dtype)
    engines = _engines(how.engines)
    subject = _subject(arch, converted, place, dtype, conversion)
    forced = how.rates or (() if data else (0.3, 0.5, 0.7, 1.0))
    timings: list[Timing] = []
    for batch in how.batches:
        images = [b.to(place, dtype) for b in _images(subject, data, batch, how.seed)]
        bench = Benchmark(
            subject.source,
            *subject.converted,
            images,
            how.threads,
            compiled=how.compiled,
            engines=engines,
        )
        timings += bench.run(forced, rounds=how.rounds, seed=how.seed, own=data is not None)
    shown: dict[str, Callable[[], str]] = {
        "table": lambda: f"{setting(place, how.dtype, how.threads)}\n{as_table(timings)}",
        "json": lambda: json.dumps([t.to_dict() for t in timings], indent=1),
    }
    click.echo(shown[form]())
    if plot:
        plot_timings(timings, plot)


def _engines(names: Sequence[str]) -> list[Engine] | None:
    """Return the engines besides PyTorch that are asked for; None for all that are installed."""
    if not names:
        return None
    engines = [Engine(*name.split("-")) for name in names if name != "torch"]
    for engine in engines:
        if not is_installed(engine.name):
            extra = {"onnxruntime": "deploy", "openvino": "openvino"}[engine.name]
            raise ArgumentError(
                f"--engine {engine.name}: is not installed; pip install "
                f'"dmnn-convert[{extra}]", or leave it out.'
            )
    return engines


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
            f"--device {device}: is not available ({first_line(error)}); give cpu."
        ) from error
    return place


def _images(subject: _Subject, data: Path | None, batch: int, seed: int) -> list[Tensor]:
    if data is None:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(batch, *subject.size, generator=generator)]
    options = DataOptions(data=str(data), input_size=subject.size[-1])
    test, _ = open_test(options)
    transform = test_transform(preprocessing(options, subject.source))
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
