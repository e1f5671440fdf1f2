"""The image files of a run: read as pictures only, and compared when a run resumes."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..optional import needed

_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF", "JPEG2000")
"""Formats that are read. Pillow would run Ghostscript for others, whatever a file's name."""


_LONGEST = 1000
"""Largest aspect ratio of an image: its longer side grows with the shorter one."""


def picture(file: str) -> Any:
    """Return a file as a PIL image in RGB.

    Raises:
        OSError, ValueError, …: for a file that is not a picture; Pillow raises anything at all.
    """
    if not os.path.isfile(file):
        raise OSError("it is not a file")
    with needed("PIL.Image").open(file, formats=_FORMATS) as image:
        short, long = sorted(image.size)
        if long > _LONGEST * short:
            raise ValueError(f"{image.width} × {image.height} pixels are a line")
        return image.convert("RGB")


def stamps(images: Any) -> Tensor:
    """Return (images, 2) int64 that identify image files: a hash of name and size, and the time.

    No file is opened, so a million files take seconds. Images without files of their own have no
    stamps, (0, 2).
    """
    rows = []
    for file, _ in getattr(images, "samples", ()):
        try:
            found = os.stat(file)
        except OSError:  # reading it will tell
            rows.append((0, 0))
            continue
        name = f"{os.path.relpath(file, images.root)} {found.st_size}"
        rows.append((zlib.crc32(name.encode(errors="surrogateescape")), found.st_mtime_ns))
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)


def check_stamps(now: Mapping[str, Any], before: Mapping[str, Tensor]) -> str | None:
    """Check that a resumed run has the files that it began with.

    Args:
        now: the images, by what they are for.
        before: their `stamps` when the run began; as many.

    Returns:
        A warning if files were rewritten since then at the same size, as copies are.

    Raises:
        ArgumentError: if one has another name or size.
    """
    other: list[str] = []
    later: list[str] = []
    for part, images in now.items():
        found = stamps(images)
        if found.shape != before[part].shape:
            raise ArgumentError(
                f"--resume: the images to {part} on are not in the files that the run began with. "
                "Put them back, or start again with another --output."
            )
        differs = found != before[part]
        for index in differs.any(1).nonzero().flatten().tolist():
            (other if differs[index, 0] else later).append(str(images.samples[index][0]))
    if other:
        raise ArgumentError(
            f"--resume: {_some(other)}: name or size differs from when the run began. "
            "Restore the files, or start again with another --output."
        )
    if later:
        return (
            f"{_some(later)}: written since the run began, at the same size; a copy is "
            "fine, another picture is not."
        )
    return None


def _some(files: list[str]) -> str:
    return files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "")
