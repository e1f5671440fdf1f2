"""The picture of time against FLOPs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ..runtime import Timing, name_of, tf32
from .figure import figure_for, write_figure

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


def setting(device: torch.device, dtype: str, threads: int | None = None) -> str:
    """Return the device, precision and threads that times were taken with."""
    where = name_of(device)
    if device.type == "cpu":
        where += f", {threads or torch.get_num_threads()} threads"
    elif dtype == "float32":
        dtype += " (TF32 in convolutions)" if tf32() else " (no TF32)"
    return f"{where}, {dtype}, torch {torch.__version__}"


def as_table(timings: Sequence[Timing]) -> str:
    """Return timings as a table of plain text."""
    head = f"{'form':21} {'rate':>9} {'batch':>5} {'ms':>8} {'±':>6} {'F':>6} {'T':>6} {'T/F':>6}"
    lines = [head + f" {'vs eager':>8} {'saved':>6} {'on':>5} {'paths':>5}"]
    for t in timings:
        saved = "" if t.saved is None else f"{100 * t.saved:.0f} %"
        on = "" if t.executed is None else f"{t.executed:.3f}"
        line = (
            f"{t.form:21} {t.rate:>9} {t.batch:5d} {t.milliseconds:8.2f} {t.spread:6.2f} "
            f"{t.flops_ratio:6.3f} {t.time_ratio:6.3f} {t.time_ratio / t.flops_ratio:6.3f} "
            f"{t.eager_ratio:8.3f} {saved:>6} {on:>5} {'' if t.paths is None else t.paths:>5}"
        )
        lines.append(line.rstrip())
    return "\n".join(lines)
