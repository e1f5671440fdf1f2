"""The table of single images, row by row, as CSV."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch

from ..distributed import gathered, gathered_bytes, place

_PIECE = 1 << 22
"""Bytes that processes send at a time."""


class ImageRow(NamedTuple):
    """One image, as a row of the table and a picture's caption.

    Attributes:
        image: its name or number.
        label: name of its class.
        answer: name of the class that it was taken for.
        right: 1 or 0.
        confidence: a cascade's own measure, or the margin between the two largest probabilities.
        macs: of everything that ran for it.
        flops_ratio: the same over the source's.
        level: number of the network that answered, from 0; empty for gates.
        path: gates, block by block: "10|11"; empty for a cascade.
    """

    image: str
    label: str
    answer: str
    right: int
    confidence: float
    macs: int
    flops_ratio: float
    level: int | str
    path: str


class ImageTable:
    """Rows on disk until all processes have theirs; use it as a context manager.

    Rows are written as they come, to a file that the system removes by itself.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._text = io.TextIOWrapper(
            self._file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True
        )
        self._writer = csv.writer(self._text, lineterminator="\n")

    def __enter__(self) -> ImageTable:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._text.close()

    def add(self, row: ImageRow) -> None:
        """Take an image."""
        values = row._replace(
            confidence=float(f"{row.confidence:.6f}"), flops_ratio=float(f"{row.flops_ratio:.6f}")
        )
        self._writer.writerow(values)

    def pieces(self, at: torch.device) -> Iterator[bytes]:
        """Yield the rows of all processes, in order of rank; all of them must iterate."""
        self._text.flush()
        rank, own = place()[0], self._file.seek(0, io.SEEK_END)
        self._file.seek(0)
        sizes = gathered([torch.tensor([own])], torch.zeros(0, dtype=torch.long), at).tolist()
        for process, size in enumerate(sizes):
            for _ in range(0, size, _PIECE):
                piece = self._file.read(_PIECE) if process == rank else b""
                yield b"".join(gathered_bytes(piece, at))

    @staticmethod
    def write(path: Path, pieces: Iterator[bytes]) -> None:
        """Write the table with its head to a file."""
        with path.open("wb") as file:
            file.write((",".join(ImageRow._fields) + "\n").encode())
            for piece in pieces:
                file.write(piece)
