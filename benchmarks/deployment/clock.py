"""Times of deployed files, each in a process of its own that loads one engine and nothing else.

Run as a script it times one file, or a deployed folder, and prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENGINES = ("onnxruntime", "openvino")

SECONDS = 1.0
"""Each form is called for so long, in a round."""

TURNS = 3
"""A cascade and its parts take so many turns in a round."""

START = """
import time; begun = time.perf_counter()
import sys; sys.path.insert(0, sys.argv[1])
import numpy as np
from run_deployed import Deployed
run = Deployed(sys.argv[1], sys.argv[2], int(sys.argv[3]))
run(np.zeros((1, *run.told["input"]), np.float32))
print(time.perf_counter() - begun)
"""


def clocked(call: Callable[[int], Any], seconds: float, *, warm: int = 0, least: int = 5) -> float:
    """Return the median time of calls, which are numbered, in milliseconds."""
    taken: list[float] = []
    for i in range(warm):
        call(i)
    while len(taken) < least or sum(taken) < seconds:
        begun = time.perf_counter()
        call(len(taken))
        taken.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(taken)


def of_file(file: str, images: Any, engine: str, precision: str, threads: int) -> float:
    """Return the median time of a batch of an ONNX file, in milliseconds."""
    from dmnn_convert.deployment.loaded import LoadedDeployment

    ask = LoadedDeployment.engines[engine](file, precision, threads)
    return clocked(lambda i: ask(images[i % len(images)]), SECONDS, warm=3)


def of_folder(folder: str, images: Any, engine: str, threads: int) -> dict[str, float]:
    """Return the mean time of a batch in a cascade of two, and in its networks by themselves.

    The first one answers all images, the second those that it is asked for. In ONNX Runtime the
    runner takes the cascade's one graph ("whole"); "apart" is the way of the other engines.
    """
    from dmnn_convert import load_deployed
    from dmnn_convert.deployment.loaded import LoadedDeployment

    class Apart(LoadedDeployment):
        """The runner of a folder without the one graph."""

        def _read(self, folder: Path) -> Any:
            told = super()._read(folder)
            told.pop("cascade", None)
            return told

    run = load_deployed(folder, engine=engine, threads=threads)
    apart = Apart(folder, engine, threads)
    cheap, larger = apart.networks
    rest = [batch[apart.answered(batch)[1] > 0] for batch in images]
    runs: dict[str, tuple[Callable[[Any], Any], Any]] = {
        "whole": (run, images),
        "apart": (apart, images),
        "cheap": (cheap, images),
        "larger": (larger, [batch for batch in rest if len(batch)]),
    }

    def through(ask: Callable[[Any], Any], batches: Any) -> float:
        sweep = clocked(lambda _: [ask(batch) for batch in batches], SECONDS / TURNS, least=1)
        return sweep / len(images)

    # In turn, so that what disturbs the machine for a while disturbs all; the first turn warms up.
    turns = [{name: through(*pair) for name, pair in runs.items()} for _ in range(1 + TURNS)][1:]
    return {name: statistics.median(turn[name] for turn in turns) for name in runs}


def child(*words: object) -> Any:
    """Run this script, or code, in a process of its own, and return what it prints."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def time_of(path: Path, images: Path, engine: str, precision: str, batch: int, threads: int) -> Any:
    """Time a file or a folder on batches of images of a .npy file, in a process of its own."""
    return child(__file__, path, images, engine, precision, batch, threads)


def start_of(folder: Path, engine: str, threads: int) -> float:
    """Return the seconds of a fresh process until a deployed folder has given its first answer."""
    return float(child("-c", START, folder, engine, threads))


def main() -> None:
    """Print the time of what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="a file, or a deployed folder")
    parser.add_argument("images", help="a .npy file, (B, C, H, W)")
    parser.add_argument("engine")
    parser.add_argument("precision")
    parser.add_argument("batch", type=int)
    parser.add_argument("threads", type=int)
    given = parser.parse_args()
    import numpy as np

    images, size = np.load(given.images), given.batch
    batches = [images[i : i + size] for i in range(0, len(images) - size + 1, size)]
    if given.path.is_dir():
        found: Any = of_folder(str(given.path), batches, given.engine, given.threads)
    else:
        found = of_file(str(given.path), batches, given.engine, given.precision, given.threads)
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
