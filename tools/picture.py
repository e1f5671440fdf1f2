"""Draw docs/multipath.png, the picture in the README (needs matplotlib).

python tools/picture.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import itertools

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

BLUE, GREEN, GREY, ORANGE = "#3b6ea8", "#3a8f5c", "#b8bec6", "#c9772b"


def box(ax: Axes, x: float, y: float, w: float, h: float, text: str, colour: str) -> None:
    """Draw a labelled box, its lower left corner at (x, y)."""
    style = "round,pad=0.02,rounding_size=0.08"
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, fc=colour, ec="none"))
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", color="white", fontsize=9)


def arrow(ax: Axes, *points: tuple[float, float], colour: str = "#444444") -> None:
    """Draw straight segments that end in an arrow."""
    for start, end in itertools.pairwise(points):
        ax.plot(*zip(start, end, strict=True), color=colour, lw=1.4)
    head = FancyArrowPatch(
        points[-2], points[-1], arrowstyle="-|>", mutation_scale=11, color=colour, lw=1.4
    )
    ax.add_patch(head)


def dense(ax: Axes) -> None:
    """Draw a residual block as it was."""
    ax.text(1.6, 4.35, "a residual block", ha="center", fontsize=11)
    arrow(ax, (0.0, 2.0), (0.75, 2.0))
    box(ax, 0.75, 1.5, 1.5, 1.0, "conv → conv\nH channels", BLUE)
    arrow(ax, (2.25, 2.0), (2.75, 2.0))
    arrow(ax, (0.35, 2.0), (0.35, 0.7), (2.9, 0.7), (2.9, 1.8), colour="#888888")
    ax.text(1.6, 0.45, "shortcut", ha="center", fontsize=9, color="#666666")
    ax.text(2.9, 2.0, "+", ha="center", va="center", fontsize=17)
    arrow(ax, (3.05, 2.0), (3.55, 2.0))


def dynamic(ax: Axes) -> None:
    """Draw the same block with two sub-blocks, of which one runs."""
    left = 5.0
    ax.text(left + 2.35, 4.35, "dynamize(model, N=2)", ha="center", fontsize=11, family="monospace")
    arrow(ax, (left, 2.0), (left + 0.35, 2.0), (left + 0.35, 2.6), (left + 1.6, 2.6))
    arrow(ax, (left + 0.35, 2.0), (left + 0.35, 1.4), (left + 1.6, 1.4), colour=GREY)
    arrow(ax, (left + 0.35, 2.6), (left + 0.35, 3.6), (left + 0.9, 3.6), colour=ORANGE)
    box(ax, left + 0.9, 3.3, 1.5, 0.6, "gate controller", ORANGE)
    arrow(ax, (left - 0.6, 3.85), (left + 0.9, 3.75), colour=ORANGE)
    arrow(ax, (left + 2.4, 3.75), (left + 4.4, 3.85), colour=ORANGE)
    ax.text(left + 4.45, 3.62, "state, to the\nnext block", fontsize=8, color=ORANGE, va="center")
    box(ax, left + 1.6, 2.25, 1.5, 0.7, "sub-block 1\nH/2 channels", GREEN)
    box(ax, left + 1.6, 1.05, 1.5, 0.7, "sub-block 2\nH/2 channels", GREY)
    arrow(ax, (left + 2.6, 3.3), (left + 2.6, 2.97), colour=ORANGE)
    ax.text(left + 2.7, 3.1, "on", fontsize=9, color=ORANGE, va="center")
    ax.text(
        left + 2.35, 0.88, "off: skipped for this image", ha="center", fontsize=8, color="#777777"
    )
    arrow(ax, (left + 3.1, 2.6), (left + 4.1, 2.6), (left + 4.1, 2.2))
    arrow(
        ax,
        (left + 0.35, 1.4),
        (left + 0.35, 0.7),
        (left + 4.1, 0.7),
        (left + 4.1, 1.8),
        colour="#888888",
    )
    ax.text(left + 2.35, 0.45, "shortcut", ha="center", fontsize=9, color="#666666")
    ax.text(left + 4.1, 2.0, "+", ha="center", va="center", fontsize=17)
    arrow(ax, (left + 4.25, 2.0), (left + 4.85, 2.0))


def main() -> None:
    """Write docs/multipath.png."""
    figure, ax = plt.subplots(figsize=(10, 4.2))
    ax.set(xlim=(-0.1, 10.3), ylim=(0.2, 4.7))
    ax.axis("off")
    dense(ax)
    ax.text(4.2, 2.0, "→", fontsize=26, ha="center", va="center", color="#444444")
    dynamic(ax)
    figure.savefig(
        Path(__file__).parents[1] / "docs" / "multipath.png", dpi=130, bbox_inches="tight"
    )


if __name__ == "__main__":
    main()
