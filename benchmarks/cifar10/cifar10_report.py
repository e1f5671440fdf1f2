"""Table and plot of the measurements of benchmarks/cifar10/cifar10.py.

    python benchmarks/cifar10/cifar10_report.py

Puts the table into docs/results.md, between its two marks, and draws docs/results-cifar10.png.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

from cifar10 import OUTPUT, ROOT
from runs import Rows, finished

from dmnn_convert.files import write_all, write_text

MARKS = "<!-- rows -->\n", "<!-- end of rows -->\n"
HEADER = (
    *("row", "top-1", "FLOPs of ResNet-56's", "gated FLOPs", "spread", "paths", "entropy, bits"),
    *("information, bits", "frozen top-1", "epochs", "minutes"),
)


def table(rows: Rows) -> str:
    """Return the rows as Markdown, those of several seeds summed up below."""
    lines = [HEADER, ["---"] * len(HEADER), *map(_cells, rows)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    summed = [f"- {case}: {words}" for case, words in over_seeds(rows).items()]
    return text + "\n" + ("\n" + "\n".join(summed) + "\n" if summed else "")


def _cells(row: dict[str, str]) -> list[str]:
    fixed = {"network_flops_ratio": 3, "gated_flops_ratio": 3, "spread": 3, "path_entropy": 1}
    names = ["network_flops_ratio", "gated_flops_ratio", "spread", "paths", "path_entropy"]
    values = [_rounded(row[name], fixed.get(name)) for name in [*names, "information"]]
    return [
        f"`{row['name']}`",
        row["top1"],
        *values,
        row["frozen_top1"],
        row["epochs"],
        row["minutes"],
    ]


def _rounded(value: str, digits: int | None) -> str:
    return f"{float(value):.{digits}f}" if value and digits is not None else value


def over_seeds(rows: Rows) -> dict[str, str]:
    """Return mean and standard deviation of the top-1 of rows that several seeds have."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        case = row["name"].partition("-seed")[0], row["epochs"]
        found.setdefault(case, []).append(float(row["top1"]))
    return {
        f"`{name}`, {epochs} epochs": f"{statistics.mean(top1):.2f} ± "
        f"{statistics.stdev(top1):.2f} over {len(top1)} seeds"
        for (name, epochs), top1 in found.items()
        if len(top1) > 1
    }


def put(text: str, marks: tuple[str, str], file: Path) -> None:
    """Replace what stands between two marks of a page.

    Raises:
        SystemExit: if the marks are not there.
    """
    page = file.read_text(encoding="utf-8")
    if not all(mark in page for mark in marks):
        raise SystemExit(f"{file}: has no {' and '.join(m.strip() for m in marks)}.")
    before, _, rest = page.partition(marks[0])
    after = rest.partition(marks[1])[2]
    new = f"{before}{marks[0]}{text}{marks[1]}{after}"
    write_all(file.parent, {file.name: lambda path: write_text(path, new.rstrip())})


def plot(rows: Rows, file: Path) -> None:
    """Draw accuracy against FLOPs: a line through dense networks, a point for each other one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    names = {f"dense-{depth}" for depth in (20, 32, 44, 56)}
    dense = sorted(
        (r for r in rows if r["name"] in names), key=lambda r: float(r["network_flops_ratio"])
    )
    for style, epochs in zip(
        ("-", "--", ":", "-."), sorted({r["epochs"] for r in dense}, key=int), strict=False
    ):
        alike = [r for r in dense if r["epochs"] == epochs]
        depths = ", ".join(r["name"].removeprefix("dense-") for r in alike)
        label = f"static ResNet-{depths}, {epochs} epochs"
        axes.plot(*_points(alike), "o", linestyle=style, color="black", label=label)
    others = [r for r in rows if r not in dense and not r["name"].startswith(("dense", "scratch"))]
    colours = plt.get_cmap("tab20")
    for place, row in enumerate(others):
        marker, label = "s" if row["N"] == "0" else "D", f"{row['name']}, {row['epochs']} epochs"
        axes.plot(*_points([row]), marker, color=colours(place % 20), label=label)
    axes.set(xlabel="FLOPs, as a share of ResNet-56's", ylabel="top-1, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _points(rows: Rows) -> tuple[list[float], list[float]]:
    return [float(r["network_flops_ratio"]) for r in rows], [float(r["top1"]) for r in rows]


def publish(
    document: str | None,
    output: Path,
    marks: tuple[str, str],
    tables: Callable[[Rows], str],
    draw: Callable[[Rows, Path], None],
    picture: str,
) -> None:
    """Write the tables and the plot of a benchmark's rows, as the command line asks.

    Args:
        document: of the script.
        output: where the rows are.
        marks: between which the tables stand.
        tables: of rows, as Markdown.
        draw: rows, to a file.
        picture: that file's name, beside the page.
    """
    parser = argparse.ArgumentParser(
        description=document, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", type=Path, default=output)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    options = parser.parse_args()
    rows = finished(options.csv)
    put(tables(rows), marks, options.page)
    draw(rows, options.page.with_name(picture))
    print(tables(rows))


if __name__ == "__main__":
    publish(__doc__, OUTPUT, MARKS, table, plot, "results-cifar10.png")
