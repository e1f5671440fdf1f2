"""Choice of channels in the matched-width split of a trained bottleneck network.

    python benchmarks/channel_selection.py

Trains a small bottleneck ResNet on scikit-learn's digits, converts it with the middle channels
chosen by energy (the library's way), by index, and at random, and prints for each the coupling
energy lost, the error of the network's output, and the accuracy right after conversion, all gates
on, without any training.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

import dmnn_convert
from dmnn_convert.split import matched
from dmnn_convert.split.select import ChannelChoice, index_choice, lost_energy

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from digits import loaders
from loop import classification_step, evaluate, train
from random_choice import random_choice


class Bottleneck(nn.Module):
    """1×1 → 3×3 → 1×1 beside a shortcut."""

    def __init__(self, c_in: int, hidden: int, c_out: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(c_in, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.branch(x))


def network(hidden: int = 32, blocks: int = 4) -> nn.Module:
    """Build a bottleneck ResNet for (B, 3, 8, 8) images."""
    width = 4 * hidden
    body = [Bottleneck(hidden if i == 0 else width, hidden, width) for i in range(blocks)]
    stem = [nn.Conv2d(3, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    return nn.Sequential(*stem, *body, *head)


def convert(model: nn.Module, N: int, choose) -> tuple[nn.Module, float]:
    """Convert with another choice of channels; return the mean share of energy lost too."""
    lost = []

    def noted(coupling: Tensor, widths: tuple[int, int], count: int) -> ChannelChoice:
        choice = choose(coupling, widths, count)
        lost.append(lost_energy(coupling, choice))
        return choice

    with mock.patch.object(matched, "energy_choice", noted):
        converted, _ = dmnn_convert.dynamize(model, N, input_size=(3, 8, 8))
    return converted, statistics.mean(lost)


def main() -> None:
    """Train once, convert three ways, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--random", type=int, default=5, help="random choices to average over")
    parser.add_argument("--seeds", type=int, default=3, help="networks to train")
    options = parser.parse_args()
    torch.set_num_threads(1)  # images of 8×8 pixels are too small to share out
    generator = torch.Generator().manual_seed(0)
    ways = {
        "energy": (matched.energy_choice, 1),
        "index": (lambda e, w, n: index_choice(e.shape[1], e.shape[0], w, n), 1),
        "random": (
            lambda e, w, n: random_choice(e.shape[1], e.shape[0], w, n, generator),
            options.random,
        ),
    }
    rows: dict[tuple[int, str], list[tuple[float, float, float]]] = {}
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        training, test = loaders(seed)
        source = network()
        train(source, classification_step(source), training, epochs=options.epochs, lr=0.1)
        print(f"seed {seed}: source {evaluate(source, test, 'source').top1:.2f} %")
        images = torch.cat([batch for batch, _ in test])
        for N in (2, 3, 4):
            for name, (choose, times) in ways.items():
                for _ in range(times):
                    model, lost = convert(source, N, choose)
                    error = dmnn_convert.block_errors(source, model, images)[""]
                    top1 = evaluate(model, test, name).top1
                    rows.setdefault((N, name), []).append((lost, error, top1))
    print(f"{'N':>2} {'channels by':12} {'energy lost':>12} {'output error':>13} {'top-1':>9}")
    for (N, name), values in rows.items():
        lost, error, top1 = (statistics.mean(column) for column in zip(*values, strict=True))
        print(f"{N:2} {name:12} {100 * lost:10.1f} % {100 * error:11.1f} % {top1:7.2f} %")


if __name__ == "__main__":
    main()
