"""Time a training step of converted networks against their source's, interleaved in one process.

    python benchmarks/training.py
    python benchmarks/training.py --arch resnet50 --arch timm:resnet26 --batch 16 --rounds 9
    python benchmarks/training.py --arch examples/cifar_resnet.py:resnet20 --input-size 32 --compile
    python benchmarks/training.py --arch examples/cifar_resnet.py:resnet20 --levels --amp
    python benchmarks/training.py --arch resnet50 --nested

A step is forward, loss, backward and an update by SGD; the converted networks' loss is `DMNNLoss`,
so that their recording and their resource loss count. With --levels, a third form is trained for
levels of a quarter, a half, three quarters and all of four sub-blocks: three paths a step. With
--nested, nested networks of four sub-blocks are trained: with gates, and along one path. Every
round takes one step of the source and one of each converted form, in turn, so that a busy machine
slows all of them. Ratios are medians over the rounds of the ratio within a round; beside them their
lowest and highest. Where other programs run, too, `--threads 1 --clock cpu` counts the processor's
time for this one alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import dmnn_convert
from dmnn_convert.config import TAIL_NORMS
from dmnn_convert.io import zoo
from dmnn_convert.nn import along_path
from dmnn_convert.runtime.tuning import machine

ROOT = Path(__file__).resolve().parents[1]
CIFAR = f"{ROOT / 'examples' / 'cifar_resnet.py'}:resnet20"
LIMITS = {"per-sub-block": 1.6, "shared": 1.3, "levels": 3.5}
LIMITS |= dict.fromkeys(("nested gates", "nested half", "nested all"), 1.15)
"""What a step may cost at most, in steps of the source."""


class Row(NamedTuple):
    """A network's steps: seconds (median), and ratios to the source's (median, lowest, highest)."""

    arch: str
    form: str
    batch: int
    input_size: int
    seconds: float
    ratio: float = 1.0
    lowest: float = 1.0
    highest: float = 1.0
    limit: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the limit is kept; None where there is none."""
        return None if self.limit is None else self.ratio <= self.limit


Loss = Callable[[Callable[[torch.Tensor], torch.Tensor], torch.Tensor, torch.Tensor], torch.Tensor]


def classified(run: Callable, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the source's loss."""
    return nn.functional.cross_entropy(run(images).float(), labels)


def gated(model: nn.Module, table: dmnn_convert.FlopsTable) -> Loss:
    """Return what gives the loss of a network with gates."""
    loss = dmnn_convert.DMNNLoss(table, target=0.5)

    def of(run: Callable, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with dmnn_convert.record_paths(model) as paths:
            return loss(run(images).float(), labels, paths)

    return of


class Levels:
    """Gives the loss of a network trained for all levels, one step after another."""

    step = 0

    def __call__(self, run: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.step += 1
        return dmnn_convert.level_losses(run, images, labels, step=self.step).total


def along(model: nn.Module, level: float) -> Loss:
    """Return what gives the loss of one level."""
    path = dmnn_convert.level_path(model, level)

    def of(run: Callable, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with along_path(model, path):
            return classified(run, images, labels)

    return of


def step_of(
    model: nn.Module, loss: Loss, batch: int, size: int, options: argparse.Namespace
) -> Callable[[], None]:
    """Return a training step on images that stay the same."""
    model.train()
    images = torch.randn(batch, 3, size, size)
    if options.amp:
        model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
    run = torch.compile(model, fullgraph=True) if options.compile else model

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.amp):
            value = loss(run, images, labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def steps(
    arch: str, batch: int, size: int, options: argparse.Namespace
) -> dict[str, Callable[[], None]]:
    """Return the source's step and those of what it is converted to."""
    source = zoo.build(arch)
    shape = (batch, size, options)
    made = {"source": step_of(source, classified, *shape)}
    for tail_norm in () if options.nested else TAIL_NORMS:
        model, table = dmnn_convert.dynamize(
            source, options.N, split=options.split, tail_norm=tail_norm, input_size=(3, size, size)
        )
        made[tail_norm] = step_of(model, gated(model, table), *shape)
    if options.levels:
        model, _ = dmnn_convert.dynamize(
            source, 4, split="exact", tail_norm="shared", input_size=(3, size, size)
        )
        made["levels"] = step_of(model, Levels(), *shape)
    if options.nested:
        model, table = dmnn_convert.dynamize(source, 4, split="nested", input_size=(3, size, size))
        made["nested gates"] = step_of(model, gated(model, table), *shape)
        for name, level in (("half", 0.5), ("all", 1.0)):
            made[f"nested {name}"] = step_of(model, along(model, level), *shape)
    return made


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(
    made: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Return the seconds of every step; the first round, which warms up, is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds + 1):
        for name, step in made.items():
            start = clock()
            step()
            seconds[name].append(clock() - start)
    return {name: taken[1:] for name, taken in seconds.items()}


def rows(arch: str, options: argparse.Namespace) -> Iterator[Row]:
    """Time an architecture."""
    file, _, factory = arch.rpartition(":")
    is_cifar = f"{Path(file).resolve()}:{factory}" == CIFAR
    size = options.input_size or (32 if is_cifar else 224)
    batch = options.batch or (8 if size > 64 else 128)
    seconds = timed(steps(arch, batch, size, options), options.rounds, CLOCKS[options.clock])
    for form, taken in seconds.items():
        ratios = [a / b for a, b in zip(taken, seconds["source"], strict=True)]
        yield Row(
            arch.removeprefix(f"{ROOT}/"),
            form,
            batch,
            size,
            statistics.median(taken),
            statistics.median(ratios),
            min(ratios),
            max(ratios),
            LIMITS.get(form),
        )


def as_text(row: Row) -> str:
    """Return a line of the table."""
    line = f"  {row.form:14}{row.seconds:8.3f} s"
    if row.limit is None:
        return f"{row.arch}, batch {row.batch}, {row.input_size} pixels\n{line}"
    verdict = "met" if row.met else "not met"
    spread = f"({row.lowest:.2f} to {row.highest:.2f})"
    return f"{line}  {row.ratio:5.2f} of the source's {spread}, limit {row.limit}: {verdict}"


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", help="may be given several times")
    parser.add_argument("--batch", type=int, help="images per step; 8, or 128 of up to 64 pixels")
    parser.add_argument("--input-size", type=int, help="pixels; 224, or 32 of the CIFAR network")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--levels", action="store_true", help="a step for all levels, too")
    parser.add_argument("--nested", action="store_true", help="nested networks instead")
    parser.add_argument("--amp", action="store_true", help="bf16 and channels last")
    parser.add_argument("--compile", action="store_true", help="torch.compile(fullgraph=True)")
    parser.add_argument("-N", type=int, default=2)
    parser.add_argument("--split", default="matched")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    setting = {"cpu": machine(), "threads": options.threads, "clock": options.clock}
    setting["torch"] = torch.__version__
    if options.format == "text":
        print(", ".join(f"{name} {value}" for name, value in setting.items()))
    every = []
    for arch in options.arch or ("resnet50", "mobilenet_v2", CIFAR):
        for row in rows(arch, options):
            every.append(row._asdict() | {"met": row.met})
            if options.format == "text":
                print(as_text(row), flush=True)
    if options.format == "json":
        print(json.dumps({**setting, "rows": every}, indent=2))


if __name__ == "__main__":
    main()
