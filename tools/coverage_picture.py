"""Draw docs/coverage.png from docs/coverage.csv: the share of MACs that gates decide about.

python tools/coverage_picture.py
"""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parents[1] / "docs"
SHARE, LIBRARIES = "gated_share", ("timm", "torchvision", "torchvision-dense")


def main() -> None:
    """Write the histogram."""
    with (DOCS / "coverage.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row[SHARE]]
    shares = [
        [100 * float(row[SHARE]) for row in rows if row["library"] == own] for own in LIBRARIES
    ]
    figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
    labels = [f"{name} ({len(own)})" for name, own in zip(LIBRARIES, shares, strict=True)]
    ax.hist(shares, bins=range(0, 101, 5), stacked=True, label=labels)
    ax.set(xlabel="MACs that gates can switch off, %", ylabel="models", xlim=(0, 100))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    figure.savefig(DOCS / "coverage.png", dpi=110)


if __name__ == "__main__":
    main()
