"""The information that two labellings of the images share, in bits."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy(counts: Tensor) -> float:
    """Return the entropy of labels that occur `counts` (K,) times, in bits."""
    shares = counts[counts > 0].double() / counts.sum()
    return max(0.0, -float((shares * shares.log2()).sum()))


def mutual_information(a: Tensor, b: Tensor) -> float:
    """Return the information that integer labels a (B,) and b (B,) from 0 share, in bits.

    It is the plug-in estimate: with about as many labels as images it comes near the entropy of
    the other labelling whatever the images are. `chance_information` says how much of it that is.
    """
    together = (a * (int(b.max()) + 1) + b).unique(return_counts=True)[1]
    alone = entropy(a.bincount()) + entropy(b.bincount())
    return max(0.0, alone - entropy(together))


def chance_information(a: Tensor, b: Tensor) -> float:
    """Return the mutual information that labels (B,) share on average when shuffled, in bits.

    This is the exact mean over all B! orders of the labels (Vinh et al. 2010): nothing is
    drawn, and only how often each label occurs matters. A Miller-Madow correction would not serve,
    because it fails where most paths are taken by one image alone.
    """
    n = len(a)
    log_factorial = torch.arange(1, n + 2, dtype=torch.float64).lgamma()
    total = 0.0
    for x, times_x in _occurrences(a):
        for y, times_y in _occurrences(b):
            total += times_x * times_y * _chance_of_pair(x, y, n, log_factorial)
    return max(0.0, total)


def _occurrences(labels: Tensor) -> list[tuple[int, int]]:
    """Return how often labels occur, and how many labels occur that often."""
    counts = labels.bincount()
    sizes, times = counts[counts > 0].unique(return_counts=True)
    return list(zip(sizes.tolist(), times.tolist(), strict=True))


def _chance_of_pair(x: int, y: int, n: int, log_factorial: Tensor) -> float:
    """Return the mean term of two labels that occur x and y times among n images."""
    f = log_factorial
    k = torch.arange(max(1, x + y - n), min(x, y) + 1)
    shares = k.double() / n
    ways = f[x] + f[y] + f[n - x] + f[n - y] - f[n]
    chance = (ways - f[k] - f[x - k] - f[y - k] - f[n - x - y + k]).exp()
    term = shares * (shares * n * n / (x * y)).log2()
    return float((term * chance).sum())
