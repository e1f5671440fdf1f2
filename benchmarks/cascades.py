"""Time prepared levels and cascades against the prepared dense network, batch by batch.

    python benchmarks/cascades.py --device cuda --dtype bfloat16
    python benchmarks/cascades.py --device cuda --arch resnet50 --batch 128 --csv FILE

Networks are torchvision's, of random weights, at 224 pixels. Each is prepared for the device: on a
GPU as CUDA graphs, so that the dense one is what a user would run instead. A quarter of each batch
goes on to the cascade's larger network. T is a median time over the dense network's, all forms in
turn; F the ratio of their multiply-accumulates, where a cascade counts both runs of an image.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from deployment.forms import SHARE, SIZES, mean_macs, random_networks
from torch import Tensor, nn

from dmnn_convert import prepare, record_exits
from dmnn_convert.runtime.stopwatch import seconds_of
from dmnn_convert.runtime.tuning import name_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Row(NamedTuple):
    """What a form takes for a batch."""

    device: str
    network: str
    form: str
    dtype: str
    batch: int
    F: float
    ms: float
    T: float

    def __str__(self) -> str:
        name = f"{self.network:13} {self.form:8} {self.dtype:9} {self.batch:4}"
        return f"{name}  F {self.F:.3f}  {self.ms:9.3f} ms  T {self.T:.3f}"


def rows_of(arch: str, batch: int, given: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of one network and one size of batch."""
    torch.manual_seed(0)
    made = random_networks(arch, {"nested", "cascade"})
    few: Tensor = made.pop("images")
    count = -(-batch // len(few))
    images = few.repeat(count, 1, 1, 1)[:batch].to(given.device, DTYPES[given.dtype])
    macs = {name: mean_macs(form, SIZES[arch]) for name, form in made.items()}
    fast = {
        name: prepare(form.to(images), images, batch_sizes=(batch,), engine="torch")
        for name, form in made.items()
    }
    _check_share(fast["cascade"], images)
    times = _times(fast, images, given.rounds)
    names = {"dense": "dense", "nested": "level ½", "cascade": "cascade"}
    for name, form in names.items():
        kind = (name_of(images.device), arch, form, given.dtype, batch)
        F, T = (of[name] / of["dense"] for of in (macs, times))
        yield Row(*kind, F, times[name], T)


def _check_share(cascade: nn.Module, images: Tensor) -> None:
    """Refuse a cascade that escalates another share: its times would say nothing.

    Raises:
        RuntimeError: with the share.
    """
    with record_exits(cascade) as exits:
        cascade(images)
    share = float((exits.levels > 0).float().mean())
    if abs(share - SHARE) > 0.1:
        raise RuntimeError(f"{share:.2f} of the images go on, instead of {SHARE}")


def _times(fast: dict[str, nn.Module], images: Tensor, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each form."""
    found: dict[str, list[float]] = {name: [] for name in fast}
    with torch.no_grad():
        for i in range(-3, rounds):  # the first ones capture graphs
            for name, network in fast.items():
                seconds = seconds_of(partial(network, images), images.device)
                if i >= 0:
                    found[name].append(1e3 * seconds)
    return {name: statistics.median(each) for name, each in found.items()}


def main() -> None:
    """Print a row for each network, form and size of batch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    archs = [arch for arch in SIZES if SIZES[arch][-1] == 224]
    parser.add_argument("--arch", nargs="*", choices=archs, default=archs)
    parser.add_argument("--batch", nargs="*", type=int, default=[32, 128])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    given = parser.parse_args()
    for arch in given.arch:
        for batch in given.batch:
            rows = list(rows_of(arch, batch, given))
            print(*rows, sep="\n", flush=True)
            if given.csv:
                new = not given.csv.exists()
                with given.csv.open("a", newline="", encoding="utf-8") as lines:
                    writer = csv.writer(lines, lineterminator="\n")
                    writer.writerows([Row._fields, *rows] if new else rows)


if __name__ == "__main__":
    main()
