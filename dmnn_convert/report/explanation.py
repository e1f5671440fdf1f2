"""Explanation of a dynamic network image by image, after the paper's Figures 5 to 7."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..budget import Cascade, confidence_in
from ..categories import Categories
from ..distributed import gathered_bytes, place
from ..errors import ArgumentError
from ..evaluation import DenseEvaluation, Evaluation, SeenBatch, evaluate, evaluate_dense
from ..files import write_all, write_text
from ..flops import FlopsTable
from ..nn import conversion_within
from .image_costs import Costing, ExitCosting, GateCosting
from .image_figures import Explanation, figures_of
from .image_page import page
from .image_pictures import Extremes
from .image_sums import ImageSums
from .image_table import ImageRow, ImageTable

ENDINGS = (".csv", ".html")


def explain(
    model: nn.Module,
    loader: Iterable[Any],
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    table: FlopsTable | None = None,
    dense_macs: int | None = None,
    names: Iterable[str] | None = None,
    categories: Categories | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    each: int = 4,
    title: str = "Images by FLOPs",
    **options: Any,
) -> Explanation:
    """Evaluate a converted model or a cascade, and write what each image cost.

    A ``.csv`` file has a row for each image: its answer, confidence, FLOPs, and path or level. An
    ``.html`` file is a self-contained page: a histogram of FLOPs, how often each sub-block runs (or
    each network answers) for each category, and the easiest and hardest images of each class. Rows
    are written to disk as they come, and at most ``2 * each`` pictures of a class are kept. In a
    distributed run every process calls it with its own share of the images (`shard`), and the first
    one writes.

    Args:
        model: a converted model, or a cascade.
        loader: yields images (B, C, H, W) and integer labels (B,).
        files: where to write, each ending in .csv or .html; an empty list writes nothing.
        table: a converted model's FLOPs table; None for the model's own.
        dense_macs: MACs that a cascade is compared with; None for its largest network's.
        names: one for each image, in the loader's order; None numbers them.
        categories: big categories, by which rates are shown; None shows them by class.
        mean: of each channel, with which images were normalised, for the pictures; None stretches
            each picture from its smallest to its largest value.
        std: likewise.
        each: how many easiest, and how many hardest, images of a class are shown.
        title: of the page.
        options: those of `evaluate`: classes, device, amp_dtype, channels_last, progress.

    Raises:
        ArgumentError: for a model that is neither, files that cannot be written, too few names, or
            categories of other classes; or as `evaluate`.
        CheckpointError: if writing fails; what lay there stays.

    Example:
        >>> found = explain(model, loader, ["images.csv", "images.html"])
        >>> Path("images.csv").read_text().count("\\n")  # a heading, and 32 images
        33
    """
    paths = [files] if isinstance(files, str | os.PathLike) else list(files)
    targets = [checked_file(path) for path in paths]
    if each < 1:
        raise ArgumentError(f"explain(each={each}): give 1 or more.")
    extremes, costing = Extremes(each, mean, std), _costing(model, table, dense_macs)
    with ExitStack() as stack:
        rows = stack.enter_context(ImageTable()) if _wanted(targets, ".csv") else None
        shown = extremes if _wanted(targets, ".html") else None
        watch = _Watch(costing, rows, shown, options.get("classes"), names, categories)
        if isinstance(costing, ExitCosting):
            found: Evaluation | DenseEvaluation = evaluate_dense(
                costing, loader, on_images=watch.add, **options
            )
        else:
            found = evaluate(model, costing.table, loader, on_images=watch.add, **options)
        at = _device(model, options.get("device"))
        sums = watch.sums.everywhere(len(found.classes), at)
        explanation = figures_of(found, sums, cascade=isinstance(costing, ExitCosting))
        for path in targets:
            if path.suffix.lower() == ".csv" and rows is not None:
                pieces = rows.pieces(at)
                _on_main(path, lambda file, some=pieces: ImageTable.write(file, some), pieces)
            else:
                texts = (part.decode() for part in gathered_bytes(extremes.to_json().encode(), at))
                whole = extremes.of_all(texts)
                text = page(title, explanation, costing.columns, sums, whole, categories)
                _on_main(path, lambda file, some=text: write_text(file, some), iter(()))
    return explanation


def checked_file(path: str | os.PathLike[str]) -> Path:
    """Return the path of a report, checked before the work starts.

    Raises:
        ArgumentError: for another ending than .csv and .html, or a folder that is not there.
    """
    file = Path(path)
    if file.suffix.lower() not in ENDINGS:
        raise ArgumentError(f"explain({str(file)!r}): end the name in {' or '.join(ENDINGS)}.")
    if not file.parent.is_dir() or file.is_dir():
        what = "is a folder" if file.is_dir() else f"there is no folder {file.parent}"
        raise ArgumentError(f"explain({str(file)!r}): {what}.")
    return file


def _wanted(files: Sequence[Path], ending: str) -> bool:
    return any(file.suffix.lower() == ending for file in files)


def _on_main(path: Path, write: Any, others: Iterator[Any]) -> None:
    """Write in the first process; the others send it their rows and pictures."""
    if place()[0] == 0:
        write_all(path.parent, {path.name: write})
    else:
        deque(others, maxlen=0)


def _device(model: nn.Module, given: torch.device | str | None) -> torch.device:
    tensors = itertools.chain(model.parameters(), model.buffers())
    return torch.device(given or next((t.device for t in tensors), "cpu"))


def _costing(
    model: nn.Module, table: FlopsTable | None, dense_macs: int | None
) -> GateCosting | ExitCosting:
    if isinstance(model, Cascade):
        return ExitCosting(model, dense_macs)
    conversion = conversion_within(model)
    own = table or (conversion and conversion.table)
    if not isinstance(own, FlopsTable):
        raise ArgumentError(
            f"explain: got a {type(model).__name__}; give a converted model with its table, or a "
            "cascade."
        )
    return GateCosting(own)


class _Watch:
    """Passes evaluated batches to the table, the sums and the pictures."""

    def __init__(
        self,
        costing: Costing,
        table: ImageTable | None,
        extremes: Extremes | None,
        classes: Sequence[str] | None,
        names: Iterable[str] | None,
        categories: Categories | None,
    ) -> None:
        self.categories = categories
        self.costing, self.table, self.extremes = costing, table, extremes
        self.classes, self.sums = classes, ImageSums(len(costing.columns))
        rank, count = place()
        numbered = (f"image {i}" for i in itertools.count(rank, count))
        self.names = numbered if names is None else iter(names)
        cascade = getattr(costing, "cascade", None)
        self.confidence = "margin" if cascade is None else cascade.confidence

    def add(self, seen: SeenBatch) -> None:
        """Take a batch."""
        if not len(seen.labels):
            return
        costs, classes = self.costing.of(seen), seen.logits.shape[1]
        self._check(classes)
        answers = seen.logits.argmax(1)
        # As `evaluate` counts: logits may be masked out, but not without a finite loss.
        loss = F.cross_entropy(seen.logits, seen.labels, reduction="none")
        right = (answers == seen.labels) & loss.isfinite()
        sure = confidence_in(seen.logits, self.confidence, len(seen.labels))
        self.sums.top = self.sums.top or max(1.0, self.costing.most)
        self.sums.add(seen.labels, right, costs.ratio, costs.on, classes)
        if self.table is None and self.extremes is None:
            return
        for i, label in enumerate(seen.labels.tolist()):
            row = ImageRow(
                self._name(),
                self._class(label),
                self._class(int(answers[i])),
                int(right[i]),
                float(sure[i]),
                int(costs.macs[i]),
                float(costs.ratio[i]),
                "" if costs.levels is None else int(costs.levels[i]),
                "" if costs.paths is None else costs.paths[i],
            )
            if self.table is not None:
                self.table.add(row)
            if self.extremes is not None:
                doubt = -row.confidence if row.confidence == row.confidence else 2.0
                self.extremes.add(label, row.flops_ratio, doubt, row, seen.images[i])

    def _check(self, classes: int) -> None:
        if self.categories is not None and len(self.categories.labels) != classes:
            raise ArgumentError(
                f"explain(categories=...): are of {len(self.categories.labels)} classes, but the "
                f"model tells {classes} apart."
            )

    def _class(self, number: int) -> str:
        return str(number) if self.classes is None else self.classes[number]

    def _name(self) -> str:
        try:
            return str(next(self.names))
        except StopIteration:
            raise ArgumentError(
                "explain(names=...): there are fewer names than images; give one for each."
            ) from None
