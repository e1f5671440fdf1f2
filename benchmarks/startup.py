"""CPU time until the package, or the command's help, is there, beside PyTorch's own.

    python benchmarks/startup.py

Runs each in fresh processes, all in turn, and prints the median of the processor's seconds.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys

NAMES = "from dmnn_convert import *"
WORDS = {
    "import torch": ("-c", "import torch"),
    "import torch, torchvision, timm": ("-c", "import torch, torchvision, timm"),
    "import dmnn_convert": ("-c", "import dmnn_convert"),
    NAMES: ("-c", NAMES),
    "dmnn-convert --version": ("-m", "dmnn_convert", "--version"),
    "dmnn-convert --help": ("-m", "dmnn_convert", "--help"),
    "dmnn-convert finetune --help": ("-m", "dmnn_convert", "finetune", "--help"),
}


def seconds(words: tuple[str, ...]) -> float:
    """Return the CPU time of one process, in all of its threads and children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    rows: dict[str, list[float]] = {name: [] for name in WORDS}
    for _ in range(rounds):
        for name, words in WORDS.items():
            rows[name].append(seconds(words))
    medians = {name: statistics.median(found) for name, found in rows.items()}
    for name, median in medians.items():
        ratio = median / medians["import torch"]
        print(f"{name:36} {median:6.2f} s {ratio:6.2f} of import torch")


if __name__ == "__main__":
    main()
