"""Saved time against skipped FLOPs: a measurement of each target in docs/performance.md.

    python benchmarks/inference.py --threads 2
    python benchmarks/inference.py --only resnet50:1 --rounds 30 --json speed.json --plot speed.png
    python benchmarks/inference.py --device cuda --dtype bfloat16 --only resnet50:1 resnet50:128

For each network and batch size, all forms are timed in turn in one process (see
`dmnn-convert benchmark --help`). T is the time over that of the fastest dense form of the same run,
F the MACs over the dense network's; gates are forced at a rate, drawn for each image, and the
controllers run all the same.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmnn_convert import dynamize
from dmnn_convert.io import zoo
from dmnn_convert.nn import controllers
from dmnn_convert.report import as_table, plot_timings, setting
from dmnn_convert.runtime import Benchmark, Timing
from dmnn_convert.runtime.prepared_block import PreparedBlock

RATES = (0.3, 0.5, 0.7, 1.0)
CASES = [f"{net}:{batch}" for net in ("resnet50", "mobilenet_v2") for batch in (1, 8, 32)]
# (network, batch, rate): how much T may be, as (factor, of what), for "must" and for "reach".
LIMITS: dict[tuple[str, int, float], tuple[tuple[float, str], tuple[float, str]]] = {
    ("resnet50", 1, 0.3): ((1.27, "F"), (1.15, "F")),
    ("resnet50", 1, 0.5): ((1.20, "F"), (1.10, "F")),
    ("resnet50", 1, 0.7): ((1.20, "F"), (1.10, "F")),
    ("resnet50", 1, 1.0): ((1.10, "1"), (1.03, "1")),
    ("resnet50", 8, 0.5): ((1.30, "F"), (1.15, "F")),
    ("resnet50", 32, 0.5): ((1.30, "F"), (1.15, "F")),
    ("mobilenet_v2", 1, 0.5): ((1.40, "F"), (1.20, "F")),
    ("mobilenet_v2", 8, 0.5): ((1.0, "1"), (0.80, "1")),
    ("mobilenet_v2", 32, 0.5): ((1.25, "F"), (1.10, "F")),
}
EAGER_LIMITS = {("resnet50", 1, 0.5): (0.42, 0.37)}
CONTROLLERS = {"resnet50": 0.03, "mobilenet_v2": 0.05}


def verdicts(net: str, batch: int, timings: list[Timing]) -> list[str]:
    """Say for each target of a network and batch size what was measured."""
    lines = []
    for t in timings:
        if t.form != "prepared":
            continue
        case = (net, batch, float(t.rate))
        for limits, got, what in (
            (LIMITS.get(case), t.time_ratio, "T"),
            (_plain(EAGER_LIMITS.get(case)), t.eager_ratio, "time over eager"),
        ):
            if limits is None:
                continue
            allowed = [factor * (t.flops_ratio if of == "F" else 1.0) for factor, of in limits]
            met = "reached" if got <= allowed[1] else "met" if got <= allowed[0] else "NOT met"
            lines.append(
                f"{net}, batch {batch}, rate {t.rate}: {what} {got:.3f}, "
                f"limit {allowed[0]:.3f}, reach {allowed[1]:.3f}: {met}"
            )
    return lines


def _plain(limits: tuple[float, float] | None) -> Any:
    return None if limits is None else tuple((value, "1") for value in limits)


def share_of_controllers(bench: Benchmark, rounds: int) -> float:
    """Return the controllers' share of the time of a pass, deciding by themselves."""
    spent = [0.0]

    def timed(decide: Callable[..., list[int]], *arguments: Any) -> list[int]:
        begun = time.perf_counter()
        keys = decide(*arguments)
        spent[0] += time.perf_counter() - begun
        return keys

    images = bench.batches[0]
    blocks = [module for module in bench.prepared.modules() if isinstance(module, PreparedBlock)]
    decisions = [block.decide for block in blocks]
    for block, decide in zip(blocks, decisions, strict=True):
        block.decide = functools.partial(timed, decide)
    try:
        for _ in range(3):
            bench.prepared(images)
        spent[0], begun = 0.0, time.perf_counter()
        for _ in range(rounds):
            bench.prepared(images)
        return spent[0] / (time.perf_counter() - begun)
    finally:
        for block, decide in zip(blocks, decisions, strict=True):
            block.decide = decide


@functools.cache
def converted(net: str, device: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, Any]:
    """Return a network, its conversion with lively controllers, and the FLOPs table."""
    torch.manual_seed(0)
    source = zoo.build(net).eval()
    model, table = dynamize(source, 2)
    for controller in controllers(model):
        nn.init.normal_(controller.w3.weight, 0, 0.3)
    return source.to(device, dtype), model.to(device, dtype).eval(), table


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=CASES, metavar="NET:BATCH", help="cases")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--compile", action="store_true", help="time torch.compile's dense form")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--json", type=Path, help="write all timings here")
    parser.add_argument("--plot", type=Path, help="draw T against F here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # On a GPU every form gets the algorithm that is fastest for its sizes.
    torch.backends.cudnn.benchmark = True
    place, dtype = torch.device(options.device), getattr(torch, options.dtype)
    print(setting(place, options.dtype))
    found: dict[str, list[Timing]] = {}
    for case in options.only:
        net, _, batch = case.rpartition(":")
        source, model, table = converted(net, options.device, dtype)
        images = torch.randn(int(batch), 3, 224, 224).to(place, dtype)
        bench = Benchmark(source, model, table, [images], compiled=options.compile)
        rounds = options.rounds if int(batch) == 1 else max(5, options.rounds // 3)
        found[case] = bench.run(options.rates, rounds=rounds)
        print(f"\n{net}\n{as_table(found[case])}", flush=True)
        if place.type != "cpu":  # the limits are a CPU's
            continue
        print("\n".join(verdicts(net, int(batch), found[case])))
        if int(batch) == 1:
            share, limit = share_of_controllers(bench, rounds), CONTROLLERS.get(net, 0.05)
            met = "met" if share <= limit else "NOT met"
            print(f"{net}: controllers take {share:.3f} of the time, limit {limit}: {met}")
    if options.json:
        plain = {case: [t.to_dict() for t in timings] for case, timings in found.items()}
        options.json.write_text(json.dumps(plain, indent=1) + "\n")
    if options.plot:
        plot_timings([t for timings in found.values() for t in timings], options.plot)


if __name__ == "__main__":
    main()
