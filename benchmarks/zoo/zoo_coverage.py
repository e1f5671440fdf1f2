"""The sweep's result: rows as CSV, and the summary that is generated from them alone."""

from __future__ import annotations

import csv
import io
import os
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

STATUSES = ("exact", "approximate", "refused", "failed")
TRAINING = ("step", "no source step", "")
TOLERANCE = 1e-4
"""Largest deviation that counts as exact, of the output's largest magnitude, in float32."""
TOLERANCE_64 = 1e-9
"""The same in float64, where float32 itself rounds more than `TOLERANCE` apart."""


@dataclass(frozen=True)
class Row:
    """What the sweep found out about one model.

    Attributes:
        library: "timm", "torchvision", ...
        model: the model's name there.
        status: "exact", "approximate", "refused" or "failed".
        reason: why it was refused or failed, and under what circumstances it was checked.
        blocks: blocks found, near misses included.
        split_blocks: blocks converted.
        parameter_ratio: parameters after the matched split, without controllers, ÷ before.
        gated_share: gated MACs ÷ the source's MACs, in the exact split.
        deviation: largest deviation, all gates on, of the source's largest output.
        seconds: time it took.
        training: "step" if a training step reached all that it reaches in the source, "no source
            step" if the source itself takes none on these images; empty for models that are not
            converted.
    """

    library: str
    model: str
    status: str
    reason: str = ""
    blocks: int | None = None
    split_blocks: int | None = None
    parameter_ratio: float | None = None
    gated_share: float | None = None
    deviation: float | None = None
    seconds: float = 0.0
    training: str = ""

    def cells(self) -> list[str]:
        """Return the row as text, one cell a column."""
        formats = {"parameter_ratio": ".5f", "gated_share": ".4f", "deviation": ".1e"}
        values = asdict(self) | {"seconds": f"{self.seconds:.1f}"}
        return [
            "" if value is None else format(value, formats.get(name, ""))
            for name, value in values.items()
        ]

    @classmethod
    def from_cells(cls, cells: Sequence[str]) -> Row:
        """Read a row; raises ValueError for one that is not whole."""
        cells = [*cells, ""] if len(cells) == len(COLUMNS) - 1 else cells  # without `training`
        if len(cells) != len(COLUMNS) or cells[2] not in STATUSES or cells[10] not in TRAINING:
            raise ValueError(f"not a row of {','.join(COLUMNS)}: {','.join(cells)[:80]}")
        counts = [int(cell) if cell else None for cell in cells[4:6]]
        measures = [float(cell) if cell else None for cell in cells[6:9]]
        return cls(*cells[:4], *counts, *measures, float(cells[9]), cells[10])


COLUMNS = tuple(field.name for field in fields(Row))


def read(path: Path) -> list[Row]:
    """Read the rows; a last one that an interruption cut short is left out.

    Raises:
        ValueError: for a file that is no such table.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    lines = list(csv.reader(io.StringIO(whole)))
    if lines and tuple(lines[0]) not in (COLUMNS, COLUMNS[:-1]):  # once without `training`
        raise ValueError(f"{path}: the columns are not {','.join(COLUMNS)}; move the file away.")
    return [Row.from_cells(cells) for cells in lines[1:]]


def line(cells: Iterable[str]) -> str:
    """Return cells as one line of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write the rows, sorted, in one step: the file is the old or the new one at any time."""
    ordered = sorted(rows, key=lambda row: (row.library, row.model))
    write_text(path, line(COLUMNS) + "".join(line(row.cells()) for row in ordered))


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# --- the summary ------------------------------------------------------------------------------

NOTE = """\
Every model is built with random weights; norm statistics, norm weights, layer scales and whatever
else starts at a constant are drawn at random, so that every branch matters: switching all gates
off, and the first, the middle or the last block alone, must change the output, or the model counts
as failed. Then the model is converted with N = 2.

- **exact**: with `split="exact"` and all gates on, in evaluation and float32, no output differs by
  more than 1e-4 of the largest. Where rounding alone does (a deep random network amplifies it),
  both models are compared in float64, no more than 1e-9 apart, and the CSV's reason says so.
- **approximate**: the library itself declares a block of the model approximate.
- **refused**: no block can be converted; the model is left alone, with a reason.
- **trained**: with `split="exact"`, one training step (forward, backward) gave every parameter a
  finite gradient that has one in the source's own step; otherwise the model counts as failed. The
  CSV says `no source step` where the source itself takes none on the small images, and nothing for
  models that are not converted.
- **gated share**: multiply-accumulates that gates can switch off, of all that the source has.
- With `split="matched"`, parameters without controllers are within 1 % of the source's, but for the
  copies of last norms, which make up more of very small models.

Images are smaller than the declared ones where the model takes them; costs hold for the declared
size unless the size is part of the model. Models of more than 250 M parameters are checked as
shallower ones of the same family, and of detectors the backbone alone, which is the part to
convert; the reason then starts with "checked"."""


COUNTED = """\
Some libraries' models come with a count of their blocks, made by reading their source
(`benchmarks/zoo/zoo_human.py` says what counts). Here are the blocks converted of these. A block
that the library finds beyond the count is left out of both numbers, model by model."""


def summary(
    rows: Sequence[Row],
    family: Callable[[Row], str],
    human: Callable[[Row], int | None] = lambda row: None,
) -> str:
    """Return docs/coverage.md: totals, blocks that a human counts, families, reasons."""
    libraries = sorted({row.library for row in rows})
    parts = ["# Coverage", _commands(libraries), NOTE, "## Totals", _totals_table(rows)]
    parts += ["## Blocks that a human counts", COUNTED, _counted_table(rows, human)]
    for library in libraries:
        own = [row for row in rows if row.library == library]
        parts += [f"## {library}"]
        if library != "timm":
            parts += [_names(own)]
        parts += [_family_table(own, family), *_reasons(own)]
    return "\n\n".join(parts) + "\n"


def totals(rows: Iterable[Row]) -> str:
    """Return the line of docs/conversion.md: how many models of each library are converted."""
    by_library: dict[str, Counter[str]] = {}
    for row in rows:
        by_library.setdefault(row.library, Counter())[row.status] += 1
    return "; ".join(
        f"{library}: {_converted(by_library[library])}"
        for library in sorted(by_library, key=lambda name: (name == "timm", name))
    )


def _converted(counts: Counter[str]) -> str:
    ways = [f"{counts[s]:,} {s}" for s in ("exact", "approximate") if counts[s]]
    rest = [f"{counts[s]:,} {s}" for s in ("refused", "failed") if counts[s]]
    converted = counts["exact"] + counts["approximate"]
    text = f"{converted:,} of {sum(counts.values()):,} models converted"
    return ", ".join([text + (f" ({', '.join(ways)})" if ways else ""), *rest])


def _commands(libraries: Iterable[str]) -> str:
    commands = "\n".join(f"python benchmarks/zoo/zoo.py --library {name}" for name in libraries)
    return (
        f"```sh\n{commands}\n```\n\nwrote [coverage.csv](coverage.csv), one row a model. This page "
        "is generated from it (`python benchmarks/zoo/zoo.py --summary`)."
    )


def _totals_table(rows: Sequence[Row]) -> str:
    counts = {library: Counter[str]() for library in sorted({row.library for row in rows})}
    for row in rows:
        counts[row.library][row.status] += 1
    return _table(
        ("library", "models", *STATUSES, "trained"),
        [
            (
                name,
                f"{sum(count.values()):,}",
                *(f"{count[s]:,}" for s in STATUSES),
                f"{sum(row.library == name and row.training == 'step' for row in rows):,}",
            )
            for name, count in counts.items()
        ],
    )


def counted(rows: Iterable[Row], human: Callable[[Row], int | None]) -> dict[str, tuple[int, int]]:
    """Return of each model that a human has counted: blocks converted, at most all; and all."""
    counts = {row.model: human(row) for row in rows}
    return {
        row.model: (min(row.split_blocks or 0, count), count)
        for row in rows
        if (count := counts[row.model]) is not None
    }


def _counted_table(rows: Sequence[Row], human: Callable[[Row], int | None]) -> str:
    cells = []
    for library in sorted({row.library for row in rows}):
        found = counted([row for row in rows if row.library == library], human)
        got, total = (
            (sum(numbers) for numbers in zip(*found.values(), strict=True)) if found else (0, 0)
        )
        if total:
            with_blocks = [counts for counts in found.values() if counts[1]]
            models = f"{sum(c > 0 for c, _ in with_blocks)} of {len(with_blocks)}"
            short = [f"`{m}` {c} of {all_}" for m, (c, all_) in found.items() if c < all_]
            blocks = f"{got:,} of {total:,}"
            cells.append((library, models, blocks, f"{100 * got / total:.1f} %", ", ".join(short)))
    head = ("library", "models with blocks", "blocks", "share", "fewer than all in")
    return _table(head, cells)


def _names(rows: Sequence[Row]) -> str:
    lines = []
    for status in STATUSES:
        names = [f"`{row.model}`" for row in rows if row.status == status]
        if names:
            lines.append(f"**{status}** ({len(names)}): {', '.join(names)}")
    return "\n\n".join(lines)


def _family_table(rows: Sequence[Row], family: Callable[[Row], str]) -> str:
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(family(row), []).append(row)
    return _table(
        ("family", "models", *STATUSES, "median gated share", "largest deviation"),
        [_family_cells(name, members[name]) for name in sorted(members)],
    )


def _family_cells(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    counts = Counter(row.status for row in rows)
    shares = [row.gated_share for row in rows if row.gated_share is not None]
    deviations = [row.deviation for row in rows if row.deviation is not None]
    return (
        name,
        str(len(rows)),
        *(str(counts[status] or "") for status in STATUSES),
        f"{100 * statistics.median(shares):.1f} %" if shares else "",
        f"{max(deviations):.1e}" if deviations else "",
    )


def _reasons(rows: Sequence[Row]) -> list[str]:
    causes = Counter(cause(row.reason) for row in rows if row.status == "refused")
    ordered = sorted(causes.items(), key=lambda item: (-item[1], item[0]))
    cells = [(reason.replace("|", r"\|"), str(count)) for reason, count in ordered]
    return [_table(("refused because", "models"), cells)] if cells else []


def cause(reason: str) -> str:
    """Return a refusal's reason without what only one model has: paths and numbers."""
    reason = re.sub(r"^checked [^;]*; ", "", reason)
    reason = reason.partition("left dense: ")[2] or reason
    reason = re.sub(r"\b\w+(\.\w+)*\.\d+(\.\w+)*\b", "…", reason)  # layers.0.conv
    reason = re.sub(r"\b\w+_\d+_\w+\b", "…", reason)  # layers_0_conv
    reason = re.sub(r"\b([a-z]\w*?)_\d+\b", r"\1", reason)  # add_3
    return re.sub(r"\d+", "n", reason).strip()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))
