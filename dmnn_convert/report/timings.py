"""Time against FLOPs, as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..report.picture import figure_for, write_figure
from .benchmark import Timing

_MARKS = {"prepared": "o", "static": "x", "skipping": "v", "masked": "s"}


def plot_timings(timings: Sequence[Timing], path: str | os.PathLike[str]) -> None:
    """Draw the time ratio T of each form against the FLOPs ratio F, with the line T = F.

    Args:
        timings: of a benchmark.
        path: where to write; the suffix says the format (.png, .svg, .pdf, ...).

    Raises:
        ArgumentError: if matplotlib is missing, or writes no such format.
    """
    batches = sorted({t.batch for t in timings})
    figure = figure_for(Path(path), "plot_timings", (4.5 * len(batches), 4.5))
    for axes, batch in zip(
        figure.subplots(1, len(batches), squeeze=False)[0], batches, strict=True
    ):
        for form, mark in _MARKS.items():
            found = sorted(
                (t.flops_ratio, t.time_ratio) for t in timings if (t.form, t.batch) == (form, batch)
            )
            if found:
                axes.plot(*zip(*found, strict=True), mark, linestyle=":", label=form)
        axes.plot([0, 1], [0, 1], color="black", linewidth=1, label="T = F")
        axes.axhline(1, color="gray", linewidth=1)
        axes.set(
            xlim=(0, 1.05),
            ylim=(0, None),
            xlabel="F: MACs over the dense network's",
            ylabel="T: time over the fastest dense network's",
            title=f"batch {batch}",
        )
        axes.legend()
    write_figure(figure, Path(path))
