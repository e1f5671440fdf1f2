"""Tables and plot of the measurements of benchmarks/cifar10/budget.py.

    python benchmarks/cifar10/budget_report.py

Puts the tables into docs/results.md, between their two marks, and draws docs/results-budget.png.
The static line goes through networks trained alone, from a quarter of the hidden channels to all.
Every other policy is read off its own line at the same FLOPs, seed by seed.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from budget import OUTPUT
from cifar10_report import publish
from runs import Rows

MARKS = "<!-- budget rows -->\n", "<!-- end of budget rows -->\n"
BUDGETS = (0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
JUDGED = (0.55, 0.6, 0.65, 0.7, 0.75)
"""FLOPs ratios at which cascades have to beat the static line."""
WIDEST = 0.3
"""The widest gap between two points that a straight line is drawn through."""
LINES = {
    "static": ("static", "dense"),
    "level": ("level",),
    "cascade": ("cascade",),
    "cascade-of-two": ("cascade-of-two",),
    "gates": ("gates",),
}
"""Lines, and the policies of the rows that they go through."""
STYLES = {
    "static": "ko-",
    "level": "bs--",
    "cascade": "r^-",
    "cascade-of-two": "mD-",
    "gates": "gx:",
}


def tables(rows: Rows) -> str:
    """Return the tables of all networks as Markdown."""
    cases = dict.fromkeys((row["network"], row["epochs"]) for row in rows)
    return "\n".join(_case(network, epochs, rows) for network, epochs in sorted(cases))


def _case(network: str, epochs: str, rows: Rows) -> str:
    own = [row for row in rows if (row["network"], row["epochs"]) == (network, epochs)]
    seeds = sorted({row["seed"] for row in own})
    heading = f"**{network}, {epochs} epochs, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}**"
    parts = [heading, _levels(own), _budgets(own), "\n".join(f"- {line}" for line in _judged(own))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _levels(rows: Rows) -> str:
    """Return how each level compares with a static network that was trained alone."""
    lines = []
    for level in ("0.25", "0.5", "0.75", "1"):
        one, other = (_at_level(rows, policies, level) for policies in (["level"], LINES["static"]))
        if one and other:
            share = _mean([float(r["flops_ratio"]) for r in one])
            inside, alone = (_mean([float(r["top1"]) for r in found]) for found in (one, other))
            cells = f"{share:.3f}", f"{inside:.2f}", f"{alone:.2f}", f"{inside - alone:+.2f}"
            lines.append((level, *cells))
    return _markdown(("level", "FLOPs", "top-1", "static, alone", "difference"), lines)


def _at_level(rows: Rows, policies: Sequence[str], level: str) -> Rows:
    return [row for row in rows if row["policy"] in policies and row["levels"] == level]


def _budgets(rows: Rows) -> str:
    """Return all lines at equal FLOPs, and how far they lie above the static one."""
    static = _line(rows, "static")
    names = [name for name in LINES if _line(rows, name)]
    lines = []
    for budget in BUDGETS:
        cells = []
        for name in names:
            found = _read(_line(rows, name), budget)
            above = _above(static, _line(rows, name), [budget]) if name != "static" else None
            shown = "" if found is None else f"{found:.2f}"
            cells.append(shown + ("" if above is None else f" ({above:+.2f})"))
        lines.append((f"{budget:g}", *cells))
    return _markdown(("FLOPs", *names), lines)


def _judged(rows: Rows) -> list[str]:
    """Return what is asked for, and what came of it."""
    static, full = _line(rows, "static"), _at_level(rows, ["dense"], "1")
    found = []
    for name in ("cascade", "cascade-of-two"):
        above = _above(static, _line(rows, name), JUDGED)
        if above is not None:
            found.append(f"{name}, mean of .55 to .75: {above:+.2f} points over the static line")
    for name in ("cascade", "cascade-of-two"):
        at = _read(_line(rows, name), 0.6)
        if at is not None and full:
            dense = _mean([float(r["top1"]) for r in full])
            found.append(f"{name} at .60: {at - dense:+.2f} points over the dense network")
    return found


Line = dict[str, tuple[list[float], list[float]]]
"""FLOPs ratios, rising, and top-1, of each seed."""


def _line(rows: Rows, name: str) -> Line:
    found: Line = {}
    for seed in sorted({row["seed"] for row in rows}):
        own = [r for r in rows if r["policy"] in LINES[name] and r["seed"] == seed]
        points = sorted((float(r["flops_ratio"]), float(r["top1"])) for r in own)
        if len(points) > 1:
            found[seed] = [p[0] for p in points], [p[1] for p in points]
    return found


def _read(line: Line, budget: float) -> float | None:
    """Return a line's mean top-1 over seeds at a budget where all of them have points near."""
    inside = [points for points in line.values() if _is_near(points[0], budget)]
    if not inside or len(inside) < len(line):
        return None
    return _mean([float(np.interp(budget, *points)) for points in inside])


def _is_near(budgets: Sequence[float], budget: float) -> bool:
    """Return whether a budget lies between two that are not too far apart."""
    pairs = itertools.pairwise(budgets)
    return any(a <= budget <= b and b - a <= WIDEST for a, b in pairs)


def _above(static: Line, other: Line, budgets: Sequence[float]) -> float | None:
    """Return by how much a line lies above the static one, over the seeds that both have."""
    both = static.keys() & other.keys()
    ours, theirs = ({s: line[s] for s in both} for line in (static, other))
    read = [(_read(theirs, b), _read(ours, b)) for b in budgets]
    gains = [a - b for a, b in read if a is not None and b is not None]
    return _mean(gains) if gains and len(gains) == len(budgets) else None


def _mean(values: Sequence[float]) -> float:
    return statistics.mean(values)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    every = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)


def _with_gaps(budgets: Sequence[float], top1: Sequence[float]) -> tuple[list[float], list[float]]:
    """Part the points that are too far apart by one that is no number, at which a line ends."""
    gaps = [i for i, (a, b) in enumerate(itertools.pairwise(budgets), 1) if b - a > WIDEST]
    return np.insert(budgets, gaps, np.nan).tolist(), np.insert(top1, gaps, np.nan).tolist()


def plot(rows: Rows, file: Path) -> None:
    """Draw accuracy over FLOPs, a picture a network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    networks = sorted({row["network"] for row in rows})
    figure, every = plt.subplots(
        1, len(networks), figsize=(7 * len(networks), 5), layout="constrained", squeeze=False
    )
    for axes, network in zip(every[0], networks, strict=True):
        own = [row for row in rows if row["network"] == network]
        for name, style in STYLES.items():
            for place, points in enumerate(_line(own, name).values()):
                axes.plot(
                    *_with_gaps(*points), style, markersize=4, label=name if not place else None
                )
        axes.set(xlabel="FLOPs of the network, over the dense one's", ylabel="top-1, %")
        axes.set_title(f"{network}, CIFAR-10")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    publish(__doc__, OUTPUT, MARKS, tables, plot, "results-budget.png")
