"""Packs a few CIFAR-10 images into models/cifar10-sample.zip, for examples and tests.

    python tools/cifar10_sample.py --data DIR

DIR holds train/<class>/ and test/<class>/. From the training images come some of those that
benchmarks/cifar10/budget.py holds out, so that no network of its has learnt from them.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

from dmnn_convert.data import images
from dmnn_convert.files import write_all
from dmnn_convert.finetune import Recipe

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "models" / "cifar10-sample.zip"
HELD_OUT = 0.05
"""The share that the benchmark holds out."""


def main() -> None:
    """Write the archive."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500, help="images of each kind  [500]")
    options = parser.parse_args()
    data = images.open_data(Recipe(data=str(options.data), held_out=HELD_OUT))
    write_all(OUTPUT.parent, {OUTPUT.name: lambda path: pack(data, options.count, path)})
    print(f"{OUTPUT}: {OUTPUT.stat().st_size / 1e6:.2f} MB")


def pack(data: images.Data, count: int, file: Path) -> None:
    """Write evenly spread images of both kinds, under held_out/<class>/ and test/<class>/."""
    with zipfile.ZipFile(file, "w") as archive:
        for kind, some in (("held_out", data.held_out), ("test", data.test)):
            total = len(some)  # type: ignore[arg-type]
            for i in range(count):
                path = Path(images.file_of(some, i * total // count))
                entry = zipfile.ZipInfo(f"{kind}/{path.parent.name}/{path.name}")
                archive.writestr(entry, path.read_bytes())


if __name__ == "__main__":
    main()
