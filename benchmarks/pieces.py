"""The gain from each piece of `prepare`, one by one.

    python benchmarks/pieces.py --threads 1

Controllers: all of one pass, in C, in NumPy and as modules, and over that in C, on the maps of a
random image. Tuning (`--tuning`): the time of `prepare` guessing, measuring, and with a cache.
oneDNN (`--onednn`): an image through the prepared network, with half of its gates on, where
convolutions call oneDNN's own operators, and where PyTorch's public ones run instead.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmnn_convert import dynamize, force_gates, prepare
from dmnn_convert.io import zoo
from dmnn_convert.nn import controllers
from dmnn_convert.runtime import folded, folded_controller, packed
from dmnn_convert.runtime.folded_controller import Scratch


def inputs_of(model: nn.Module, image: Tensor) -> list[Tensor]:
    """Return what each controller reads in a pass of one image."""
    seen: list[Tensor] = []
    hooks = [
        c.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        for c in controllers(model)
    ]
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return [x.contiguous(memory_format=torch.channels_last) for x in seen]


def taken(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of calls, made in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(-3, rounds):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            if i >= 0:
                times[name].append(1e3 * (time.perf_counter() - begun))
    return {name: statistics.median(each) for name, each in times.items()}


def controllers_alone(net: str, rounds: int) -> dict[str, float]:
    """Return the milliseconds of all controllers of a pass, by how they are computed."""
    model = dynamize(zoo.build(net), 2).model.eval()
    own = controllers(model)
    maps = inputs_of(model, torch.randn(1, 3, 224, 224))
    weights, scratch, native = [folded(c) for c in own], Scratch(), folded_controller._controller

    def in_c() -> None:
        state = None
        for w, x in zip(weights, maps, strict=True):
            _, state, _ = w.decide(x, x.shape, None, state, scratch)

    def in_numpy() -> None:
        folded_controller._controller = None
        try:
            in_c()
        finally:
            folded_controller._controller = native

    def as_modules() -> None:
        with torch.no_grad():
            for controller, x in zip(own, maps, strict=True):
                controller(x).tolist()

    forms = {"in C": in_c, "in NumPy": in_numpy, "as modules": as_modules}
    return taken(forms if native else {k: v for k, v in forms.items() if k != "in C"}, rounds)


def tuning(net: str, batch: int) -> dict[str, float]:
    """Return the seconds of `prepare`, by what it has to measure."""
    model = dynamize(zoo.build(net), 2).model.eval()
    image, seconds = torch.randn(1, 3, 224, 224), {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DMNN_CONVERT_CACHE"] = str(Path(folder) / "autotune.json")
        for name, autotune in (("guessed", False), ("measured", True), ("from the cache", True)):
            begun = time.perf_counter()
            prepare(model, image, batch_sizes=(1, batch), autotune=autotune)
            seconds[name] = time.perf_counter() - begun
    return seconds


def onednn(net: str, rounds: int) -> dict[str, float]:
    """Return the milliseconds of an image, by the operators that convolutions call."""
    model = dynamize(zoo.build(net), 2).model.eval()
    image, operators = torch.randn(1, 3, 224, 224), packed.ONEDNN

    def prepared_with(found: tuple[Any, Any, Any] | None) -> Callable[[], object]:
        packed.ONEDNN = found
        with tempfile.TemporaryDirectory() as folder:
            os.environ["DMNN_CONVERT_CACHE"] = str(Path(folder) / "autotune.json")
            fast = prepare(model, image)

        def call() -> None:
            packed.ONEDNN = found
            with force_gates(fast, 0.5):
                fast(image)

        return call

    forms = {"oneDNN's": prepared_with(operators), "PyTorch's": prepared_with(None)}
    try:
        return taken(forms if operators else {"PyTorch's": forms["PyTorch's"]}, rounds)
    finally:
        packed.ONEDNN = operators


def main() -> None:
    """Print what each piece takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", nargs="+", default=["resnet50", "mobilenet_v2"])
    parser.add_argument("--tuning", action="store_true", help="measure tuning, too")
    parser.add_argument("--onednn", action="store_true", help="compare operators, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for net in args.only:
        found = controllers_alone(net, args.rounds)
        first = next(iter(found.values()))
        shown = ", ".join(f"{k} {v:.2f} ms ({v / first:.2f})" for k, v in found.items())
        print(f"{net}: controllers {shown}", flush=True)
        if args.tuning:
            each = ", ".join(f"{k} {v:.1f} s" for k, v in tuning(net, args.batch).items())
            print(f"{net}: prepare, batches of 1 and {args.batch}: {each}", flush=True)
        if args.onednn:
            each = ", ".join(f"{k} {v:.1f} ms" for k, v in onednn(net, args.rounds).items())
            print(f"{net}: an image with operators that are {each}", flush=True)


if __name__ == "__main__":
    main()
