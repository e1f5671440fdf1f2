"""The report on an evaluation, as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation import PERCENTILES, DenseEvaluation, Evaluation, Spread
from ..text import aligned
from .image_figures import Explanation

BARS = "▁▂▃▄▅▆▇█"


WIDTH = 50
"""Most characters that the histogram takes."""


SHOWN = 3
"""Number of the cheapest and of the most expensive classes that the short text names."""


@dataclass(frozen=True)
class EvaluationReport:
    """An evaluation in figures, with those that it is compared with.

    Attributes:
        name: the model's.
        evaluation: of the converted model, or of one without gates.
        source: of the dense network that it was made from, on the same images.
        frozen: of the converted model with its gates frozen to the most frequent path.
        skipped: images that could not be read and are left out.
        cascade: which networks answered, where the model is a cascade.
    """

    name: str
    evaluation: DenseEvaluation
    source: DenseEvaluation | None = None
    frozen: Evaluation | None = None
    skipped: int = 0
    cascade: Explanation | None = None

    def as_text(self, verbose: bool = False) -> str:
        """Return the report for people; `verbose` lists every class."""
        found = self.evaluation
        used = sum(1 for n in found.class_images if n)
        heading = f"{self.name}: {_counted(found.images, 'image')} of {_counted(used, 'class')}"
        if self.skipped:
            heading += f"; {_counted(self.skipped, 'image')} left out that cannot be read"
        parts = [heading, self._accuracy()]
        if isinstance(found, Evaluation):
            parts += [_flops(found), _histogram(found), _paths(found), _rates(found)]
        if self.cascade is not None:
            parts.append(_exits(self.cascade))
        return "\n\n".join([*parts, _classes(found, verbose)])

    def as_json(self) -> str:
        """Return the report for programs."""
        others = {"source": self.source, "frozen": self.frozen}
        values: dict[str, Any] = {key: other and other.to_dict() for key, other in others.items()}
        if self.cascade is not None:
            values["cascade"] = {
                "flops_ratio": self.cascade.flops_ratio,
                "exits": [exit._asdict() for exit in self.cascade.exits],
            }
        found = {"skipped_images": self.skipped, "evaluation": self.evaluation.to_dict()}
        return json.dumps({"name": self.name, **found, **values}, indent=1)

    def _accuracy(self) -> str:
        own = "dynamic" if isinstance(self.evaluation, Evaluation) else "dense"
        if self.cascade is not None:
            own = "cascade"
        rows = [("source", self.source), (own, self.evaluation), ("frozen path", self.frozen)]
        head = ("", "top-1", "top-5", "loss", "FLOPs of source", "images/s")
        lines: list[tuple[str, ...]] = [head]
        lines += [self._scores(name, found) for name, found in rows if found is not None]
        notes = [
            f"{name}: {_counted(found.nan_images, 'image')} with NaN or infinite logits, counted "
            "as wrong"
            for name, found in rows
            if found is not None and found.nan_images
        ]
        return "\n".join([aligned(lines), *notes])

    def _scores(self, name: str, found: DenseEvaluation) -> tuple[str, ...]:
        ratio: float | None = None
        if isinstance(found, Evaluation):
            ratio = found.network_flops_ratio.mean
        elif self.cascade is not None and found is self.evaluation:
            ratio = self.cascade.flops_ratio
        return (
            name,
            f"{found.top1:.2f} %",
            "-" if found.top5 is None else f"{found.top5:.2f} %",
            "-" if found.loss is None else f"{found.loss:.4f}",
            "1" if ratio is None else f"{ratio:.4f}",
            f"{found.images_per_second:,.0f}",
        )


def _exits(cascade: Explanation) -> str:
    lines: list[tuple[str, ...]] = [("answered by", "images", "top-1", "FLOPs of source")]
    for i, exit in enumerate(cascade.exits):
        shown = ("-", "-")
        if exit.top1 is not None and exit.flops_ratio is not None:
            shown = (f"{exit.top1:.2f} %", f"{exit.flops_ratio:.4f}")
        lines.append((f"network {i}", f"{100 * exit.share:.2f} %", *shown))
    return aligned(lines)


def _flops(found: Evaluation) -> str:
    lines: list[tuple[str, ...]] = [
        ("FLOPs of an image", "mean ± spread", *(f"{p} %" for p in PERCENTILES))
    ]
    lines.append(_spread("  gated, of all gates on", found.flops_ratio, "{:.3f}".format))
    lines.append(_spread("  network, of source", found.network_flops_ratio, "{:.3f}".format))
    lines.append(_spread("  network, MACs", found.macs, _macs))
    return aligned(lines)


def _spread(name: str, spread: Spread, shown: Callable[[float], str]) -> tuple[str, ...]:
    percentiles = (shown(getattr(spread, f"p{p}")) for p in PERCENTILES)
    return (name, f"{shown(spread.mean)} ± {shown(spread.std)}", *percentiles)


def _macs(macs: float) -> str:
    size, unit = next(((s, u) for s, u in ((1e9, "G"), (1e6, "M")) if macs >= s), (1e3, "k"))
    return f"{macs / size:.3g} {unit}"


def _histogram(found: Evaluation) -> str:
    """Return bars from the first to the last bin of 0..1 that has images."""
    counts = found.flops_histogram
    some = [i for i, count in enumerate(counts) if count]
    first, end = some[0], some[-1] + 1
    step = -(-(end - first) // WIDTH)
    bars = _bars([sum(counts[i : min(i + step, end)]) for i in range(first, end, step)])
    low, high = first / len(counts), end / len(counts)
    return f"Images by gated FLOPs  {low:.2f} {bars} {high:.2f}"


def _bars(values: Sequence[float], most: float | None = None) -> str:
    """Return a bar for each value up to `most`, None for the largest; a blank for zero."""
    largest = most or max(values) or 1
    last = len(BARS) - 1
    return "".join(BARS[round(last * value / largest)] if value else " " for value in values)


def _paths(found: Evaluation) -> str:
    return (
        f"Paths: {found.distinct_paths:,} distinct, entropy {found.path_entropy:.2f} bits; "
        f"{100 * found.frequent_path_share:.3g} % of the images take the most frequent one\n"
        f"  path and class share {found.mutual_information:.2f} of {found.class_entropy:.2f} bits; "
        f"shuffled labels would share {found.chance_information:.2f}"
    )


def _rates(found: Evaluation) -> str:
    lines = [("block", "rate", "sub-blocks")]
    start = 0
    for block, size, rate in zip(found.blocks, found.sizes, found.execution_rates, strict=True):
        own = found.sub_block_rates[start : start + size]
        lines.append((block, f"{rate:.3f}", "  ".join(f"{r:.3f}" for r in own)))
        start += size
    text = [aligned(lines)]
    for what, names in (("always on", found.always_on), ("never on", found.never_on)):
        if names:
            shown = ", ".join(f"{block}#{n}" for block, n in names)
            text.append(f"{what} ({len(names)} of {sum(found.sizes)}): {shown}")
    return "\n".join(text)


def _classes(found: DenseEvaluation, verbose: bool) -> str:
    """Return a row for each class that has images: the cheapest first; the worst without gates."""
    head: tuple[str, ...] = ("class, worst first", "images", "top-1")
    by = found.class_top1
    if isinstance(found, Evaluation):
        head = ("class, cheapest first", "images", "gated FLOPs", "top-1")
        by = found.class_flops_ratio
    used = [i for i, images in enumerate(found.class_images) if images]
    rows = [_class(found, i) for i in sorted(used, key=lambda i: by[i] or 0.0)]
    if verbose or len(rows) <= 2 * SHOWN + 1:
        return aligned([head, *rows])
    return aligned([head, *rows[:SHOWN], ("…", *("" for _ in head[1:])), *rows[-SHOWN:]])


def _class(found: DenseEvaluation, i: int) -> tuple[str, ...]:
    cost = (f"{found.class_flops_ratio[i]:.3f}",) if isinstance(found, Evaluation) else ()
    return (found.classes[i], f"{found.class_images[i]:,}", *cost, f"{found.class_top1[i]:.2f} %")


def _counted(n: int, what: str) -> str:
    plural = what + ("es" if what.endswith("s") else "s")
    return f"{n:,} {what if n == 1 else plural}"
