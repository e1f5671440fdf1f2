"""The curve of a network: accuracy of every policy over FLOPs and over measured time."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..budget import Point, Refusal, points
from ..files import write_all, write_text
from ..foreign import images_of
from ..runtime import ImageClock
from ..text import aligned
from .figure import figure_for, write_figure

_TIMED = 32, 8
"""Images per timed batch, and the most such batches."""


_MARKS = {"static": "x", "level": "s", "cascade": "o", "gates": "^"}


@dataclass(frozen=True)
class CurveRow:
    """The results of a policy at one budget.

    Attributes:
        policy: "static", "level", "cascade" or "gates".
        name: which level or levels, or the budget of gates.
        flops_ratio: mean FLOPs of an image, of all runs, over the dense network's.
        top1: percent.
        milliseconds: median time of an image, in the fastest form, by batches of 32 or fewer.
    """

    policy: str
    name: str
    flops_ratio: float
    top1: float
    milliseconds: float


@dataclass(frozen=True)
class Curve:
    """The results of each policy, budget by budget.

    Attributes:
        rows: by policy, each from the lowest budget on.
        notes: budgets that a policy cannot meet, and cascades that are no better than levels.
    """

    rows: tuple[CurveRow, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [("policy", "of", "FLOPs", "top-1 %", "ms an image")]
        lines += [
            (r.policy, r.name, f"{r.flops_ratio:.3f}", f"{r.top1:.2f}", f"{r.milliseconds:.3f}")
            for r in self.rows
        ]
        return "\n".join([aligned(lines), *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"rows": [asdict(row) for row in self.rows], "notes": list(self.notes)}

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line per row, whole or not at all.

        Raises:
            CheckpointError: if the file cannot be written.
        """
        text = io.StringIO()
        table = csv.DictWriter(text, list(CurveRow.__annotations__), lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(row) for row in self.rows)
        file = Path(path)
        write_all(file.parent, {file.name: lambda p: write_text(p, text.getvalue().rstrip())})

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw accuracy over FLOPs, and over time, into a file.

        Args:
            path: where to write; the suffix says the format (.png, .svg, .pdf, ...).

        Raises:
            ArgumentError: if matplotlib or the folder is missing, or there is no such format.
        """
        figure = figure_for(Path(path), "Curve.plot", (9, 4))
        over = {"flops_ratio": "FLOPs, of the dense network", "milliseconds": "ms an image"}
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (name, label) in zip(panels, over.items(), strict=True):
            for policy, mark in _MARKS.items():
                found = sorted((getattr(r, name), r.top1) for r in self.rows if r.policy == policy)
                if found:
                    axes.plot(*zip(*found, strict=True), mark, linestyle=":", label=policy)
            axes.set(xlabel=label, xlim=(0, None))
        panels[0].set(ylabel="top-1, %")
        panels[0].legend()
        write_figure(figure, Path(path))


def curve(
    model: nn.Module,
    loader: Iterable[Any],
    policies: Sequence[str] = ("level", "cascade", "gates"),
    static: nn.Module | Sequence[nn.Module] | None = None,
    *,
    held_out: Iterable[Any] | None = None,
    flops_ratios: Sequence[float] | None = None,
    progress: bool = False,
) -> Curve:
    """Measure every policy over one network, by FLOPs and by time.

    Levels, and pairs or triples of them, are those that the model keeps norm statistics of, or else
    all that N allows. Thresholds and offsets are not chosen on the images that accuracy is measured
    on, but on `held_out`, or else on every second image of the loader.

    Args:
        model: a converted model, in evaluation; it stays as it is.
        loader: yields images (B, C, H, W) and classes (B,), not trained on, in the same order each
            time.
        policies: of "level", "cascade" and "gates".
        static: networks trained alone, to compare with.
        held_out: images and classes to choose thresholds and offsets by, neither trained nor
            measured on.
        flops_ratios: budgets of cascades and gates; None for every tenth.
        progress: whether to show bars.

    Raises:
        ArgumentError: for another policy, a loader without images, classes or a fixed order, or a
            model that is not converted.

    Example:
        >>> found = curve(model, loader, ["level"])
        >>> print(found)  # doctest: +ELLIPSIS
        policy...
        >>> found.to_csv("curve.csv")
    """
    loader = list(loader) if isinstance(loader, Iterator) else loader
    found = points(model, loader, policies, static, held_out, flops_ratios, progress=progress)
    rows: list[CurveRow] = []
    refused: list[Refusal] = []
    clock: ImageClock | None = None
    for point in found:
        if isinstance(point, Refusal):
            refused.append(point)
            continue
        clock = clock or ImageClock(_timed(model, loader))
        rows.append(_row(point, clock))
    return Curve(tuple(rows), (*_refusals(refused), *_no_better(rows)))


def _row(point: Point, clock: ImageClock) -> CurveRow:
    network = point.network
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        return CurveRow(*point[:4], clock.milliseconds(network))
    finally:
        for module, training in modes:
            module.training = training


def _timed(model: nn.Module, loader: Iterable[Any]) -> list[Tensor]:
    """Return batches of the loader's first images, on the model's device, all of one size."""
    size, most = _TIMED
    at, parts = next(model.parameters()).device, []
    for batch in loader:
        parts += [part.to(at) for part in images_of(batch, "curve").split(size)]
        if len(parts) >= most:
            break
    return [part for part in parts[:most] if part.shape == parts[0].shape]


def _refusals(refused: Sequence[Refusal]) -> Iterator[str]:
    """Yield why a policy is left out at some budgets, one note for each run of budgets."""
    for policy in dict.fromkeys(r.policy for r in refused):
        reasons = [r.reason for r in refused if r.policy == policy]
        more = f" (and {len(reasons) - 1} more budgets)" if len(reasons) > 1 else ""
        yield f"{policy}: no row for {reasons[0]}{more}"


def _no_better(rows: Sequence[CurveRow]) -> Iterator[str]:
    """Yield which cascades are no better than levels of equal FLOPs."""
    levels = sorted((r.flops_ratio, r.top1) for r in rows if r.policy == "level")
    for row in rows:
        if row.policy != "cascade":
            continue
        level = _between(levels, row.flops_ratio)
        if level is not None and row.top1 <= level:
            yield (
                f"cascade {row.name} has {row.top1:.2f} % at {row.flops_ratio:.3f} of the FLOPs; "
                f"levels of equal FLOPs have {level:.2f} %, on the line between them: a level is "
                "the better choice there."
            )


def _between(levels: Sequence[tuple[float, float]], ratio: float) -> float | None:
    """Return the accuracy of levels, interpolated at a ratio; None below the lowest one."""
    for (left, low), (right, high) in itertools.pairwise(levels):
        if left <= ratio < right:
            return low + (high - low) * (ratio - left) / (right - left)
    return levels[-1][1] if levels and ratio >= levels[-1][0] else None
