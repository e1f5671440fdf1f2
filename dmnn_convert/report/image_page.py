"""The page on single images: self-contained HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from torch import Tensor

from ..categories import Categories
from ..evaluation import Evaluation
from .image_figures import Explanation
from .image_pictures import Extremes, Shown
from .image_sums import BINS, ImageSums

_MOST_ROWS = 60
"""Most rows of the table of rates; of more, half are the cheapest, half the most expensive."""

_STYLE = """
:root { color-scheme: light dark; --bar: #3b6ea8; --wrong: #c9772b; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .15rem .5rem; text-align: right; font-weight: normal }
th:first-child, td:first-child { text-align: left; white-space: nowrap }
.wide { overflow-x: auto } .wide td.rate { padding: 0 .3rem; font-size: .75rem; color: #111 }
.wide th.column { font-size: .7rem; writing-mode: vertical-rl; text-align: left }
figure { display: inline-block; margin: .2rem; width: 6.5rem; vertical-align: top }
figure img { width: 6.5rem; image-rendering: pixelated; display: block }
figcaption { font-size: .7rem; line-height: 1.25; overflow-wrap: anywhere }
.wrong { color: var(--wrong) } .pair { display: flex; flex-wrap: wrap; gap: 1.5rem }
.note { opacity: .75; font-size: .85rem } svg text { font-size: 11px; fill: currentColor }
"""


def page(
    title: str,
    explanation: Explanation,
    columns: Sequence[str],
    sums: ImageSums,
    extremes: Extremes,
    categories: Categories | None,
) -> str:
    """Return the page as HTML.

    Args:
        title: its heading.
        explanation: the figures of all images.
        columns: names of the sub-blocks, or of a cascade's networks.
        sums: of all processes' images.
        extremes: likewise.
        categories: by which rates are shown; None for by class.
    """
    found = explanation.evaluation
    head = (
        f"{found.images:,} images of {sum(1 for n in found.class_images if n)} classes: top-1 "
        f"{found.top1:.2f} %, {explanation.flops_ratio:.3f} of the source's FLOPs on the mean."
    )
    if isinstance(found, Evaluation):
        head += f" {found.distinct_paths:,} distinct paths."
    parts = [
        f"<h1>{escape(title)}</h1><p>{head}</p>",
        _histogram(sums),
        _exits(explanation),
        _rates(columns, sums, found.classes, categories, cascade=bool(explanation.exits)),
        *_pictures(extremes, found.classes),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body></html>"
    )


def _histogram(sums: ImageSums) -> str:
    width, height = 840, 180
    wrong, right = sums.histogram.tolist()
    most = max(w + r for w, r in zip(wrong, right, strict=True)) or 1
    step, bars = width / BINS, []
    for i, (bad, good) in enumerate(zip(wrong, right, strict=True)):
        if not bad + good:
            continue
        low, high = sums.top * i / BINS, sums.top * (i + 1) / BINS
        whole, part = height * (bad + good) / most, height * bad / most
        shared = f'x="{i * step:.1f}" width="{step - 1:.1f}"'
        bars.append(
            f"<g><title>{low:.3f} to {high:.3f} of the FLOPs: {good:.0f} right, {bad:.0f} wrong"
            f'</title><rect {shared} y="{height - whole:.1f}" height="{whole - part:.1f}" '
            f'fill="var(--bar)"/><rect {shared} y="{height - part:.1f}" height="{part:.1f}" '
            'fill="var(--wrong)"/></g>'
        )
    marks = [k / 4 for k in range(int(4 * sums.top) + 1)]
    axis = "".join(
        f'<text x="{width * mark / sums.top:.0f}" y="{height + 14}" text-anchor="middle">{mark:g}'
        "</text>"
        for mark in marks
    )
    return (
        "<h2>Images by FLOPs</h2>"
        f'<svg viewBox="-14 -4 {width + 28} {height + 22}" width="{width + 28}" role="img" '
        f'style="max-width:100%">{"".join(bars)}<line x2="{width}" y1="{height}" y2="{height}" '
        f'stroke="currentColor"/>{axis}</svg>'
        '<p class="note">FLOPs of an image over the source\'s; blue: answered rightly, orange: '
        "wrongly. Point at a bar for its numbers.</p>"
    )


def _exits(explanation: Explanation) -> str:
    if not explanation.exits:
        return ""
    rows = [
        (f"network {i}", f"{100 * exit.share:.1f} %", _percent(exit.top1), _ratio(exit.flops_ratio))
        for i, exit in enumerate(explanation.exits)
    ]
    head = ("answered by", "images", "top-1 of these", "FLOPs of these")
    return f"<h2>Networks of the cascade</h2>{_table(head, rows)}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} %"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f"<table><tr>{top}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _rates(
    columns: Sequence[str],
    sums: ImageSums,
    classes: Sequence[str],
    categories: Categories | None,
    *,
    cascade: bool,
) -> str:
    """Return a row for each category or class, the cheapest first, with a cell for each column."""
    names, values = classes, sums.by_class
    if categories is not None:
        names, values = categories.names, sums.grouped(categories.labels, categories.count)
    used = [i for i in range(len(names)) if values[i, 0]]
    used.sort(key=lambda i: float(values[i, 2] / values[i, 0]))
    half, left_out = _MOST_ROWS // 2, len(used) - _MOST_ROWS
    kept = used if left_out <= 0 else [*used[:half], *used[-half:]]
    what = "class" if categories is None else "category"
    title = "Answers of each network" if cascade else "Execution rates of the sub-blocks"
    head = "".join(f'<th class="column">{escape(name)}</th>' for name in columns)
    head = f"<th>{what}, cheapest first</th><th>images</th><th>top-1</th><th>FLOPs</th>{head}"
    rows = [_rate_row(names[i], values[i]) for i in kept]
    note = "" if left_out <= 0 else f"; {left_out:,} between the cheapest and dearest are left out"
    return (
        f"<h2>{title}, by {what}</h2>"
        f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
        f'<p class="note">Shares of the images, in percent{note}.</p>'
    )


def _rate_row(name: str, values: Tensor) -> str:
    images, right, ratio = values[:3].tolist()
    shares = (values[3:] / images).tolist()
    cells = "".join(
        f'<td class="rate" style="background:hsl(210 60% {95 - 45 * share:.0f}%)">'
        f"{100 * share:.0f}</td>"
        for share in shares
    )
    return (
        f"<tr><td>{escape(name)}</td><td>{images:,.0f}</td><td>{100 * right / images:.1f} %</td>"
        f"<td>{ratio / images:.3f}</td>{cells}</tr>"
    )


def _pictures(extremes: Extremes, classes: Sequence[str]) -> Iterable[str]:
    yield "<h2>The easiest and the hardest images of each class</h2>"
    yield (
        '<p class="note">By FLOPs, and where these are equal by confidence. Each picture has its '
        "FLOPs over the source's, its answer and its confidence; wrong answers are orange.</p>"
    )
    for label in sorted(extremes.easiest):
        easy, hard = extremes.easiest[label], extremes.hardest[label][::-1]
        yield (
            f'<h3>{escape(classes[label])}</h3><div class="pair"><div>easiest<br>'
            f"{''.join(map(_figure, easy))}</div><div>hardest<br>{''.join(map(_figure, hard))}"
            "</div></div>"
        )


def _figure(shown: Shown) -> str:
    row = shown.caption
    kind = "" if row["right"] else ' class="wrong"'
    level = "" if row["level"] == "" else f", network {row['level']}"
    return (
        f'<figure title="{escape(row["image"])} {escape(row["path"])}">'
        f'<img alt="{escape(row["image"])}" src="data:image/jpeg;base64,{shown.picture}">'
        f"<figcaption{kind}>{row['flops_ratio']:.3f}{level}<br>{escape(row['answer'])} "
        f"{row['confidence']:.2f}</figcaption></figure>"
    )
