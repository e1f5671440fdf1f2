"""Time conversion against building the model plus one forward pass, interleaved in one process.

python benchmarks/conversion.py --arch resnet101 --rounds 7
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import dmnn_convert
from dmnn_convert.io import zoo


def seconds(work) -> tuple[float, object]:
    """Return how long a call took, and what it returned."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    """Print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet101")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-N", type=int, default=2)
    parser.add_argument("--split", default="matched")
    parser.add_argument("--no-verify", action="store_true", help="leave the self-check out")
    options = parser.parse_args()
    images = torch.zeros(1, 3, 224, 224)
    builds, conversions = [], []
    for _ in range(options.rounds):

        def build_and_run() -> torch.nn.Module:
            model = zoo.build(options.arch).eval()
            with torch.no_grad():
                model(images)
            return model

        built, model = seconds(build_and_run)
        converted, _ = seconds(
            lambda m=model: dmnn_convert.dynamize(
                m, options.N, split=options.split, verify=not options.no_verify
            )
        )
        builds.append(built)
        conversions.append(converted)
    build, conversion = statistics.median(builds), statistics.median(conversions)
    print(
        f"{options.arch}, N={options.N}, {options.split} split, {torch.get_num_threads()} threads"
    )
    print(f"  build and one forward pass  {build:.2f} s (first {builds[0]:.2f} s)")
    print(f"  conversion                  {conversion:.2f} s (first {conversions[0]:.2f} s)")
    print(f"  ratio of the medians        {conversion / build:.2f}")
    print(f"  ratio of the first round    {conversions[0] / builds[0]:.2f}")


if __name__ == "__main__":
    main()
