"""The picture of an evaluation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..evaluation import Evaluation
from .figure import figure_for, write_figure


def plot_evaluation(evaluation: Evaluation, path: str | os.PathLike[str]) -> None:
    """Draw the FLOPs of the images and the execution rate of each block into a file.

    Args:
        evaluation: of a converted model.
        path: where to write; the suffix says the format (.png, .svg, .pdf, ...).

    Raises:
        ArgumentError: if matplotlib or the folder is missing, or there is no such format.
    """
    figure = figure_for(Path(path), "plot_evaluation", (7, 6))
    upper, lower = figure.subplots(2)
    _draw_flops(upper, evaluation)
    _draw_rates(lower, evaluation)
    write_figure(figure, Path(path))


def _draw_flops(axes: Any, evaluation: Evaluation) -> None:
    counts, ratio = evaluation.flops_histogram, evaluation.flops_ratio
    width = 1 / len(counts)
    axes.bar([width * i for i in range(len(counts))], counts, width, align="edge")
    axes.axvline(ratio.mean, color="black", linestyle="--", linewidth=1)
    axes.set(
        xlim=(0, 1),
        xlabel="gated FLOPs of an image, of all gates on",
        ylabel="images",
        title=f"mean {ratio.mean:.3f}, spread {ratio.std:.3f}",
    )


def _draw_rates(axes: Any, evaluation: Evaluation) -> None:
    rates, start = evaluation.sub_block_rates, 0
    places = range(len(evaluation.blocks))
    axes.bar(places, evaluation.execution_rates, color="lightgray")
    for place, size in enumerate(evaluation.sizes):
        axes.plot([place] * size, rates[start : start + size], "_", color="black")
        start += size
    axes.set(ylim=(0, 1.05), ylabel="execution rate", title="blocks, and their sub-blocks (marks)")
    axes.set_xticks(places, evaluation.blocks, rotation=90, fontsize="small")
