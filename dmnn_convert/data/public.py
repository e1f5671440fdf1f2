"""The names that the data wing exports, whose import loads PyTorch."""

from . import images
from .image_files import check_stamps, stamps
from .images import Augmented, Batch, Data, Loader, Readable, checked, collate, file_of, open_test
from .loaders import EpochOrder, LoaderDiedError, test_loader, training_loader
from .memory import KeptBatches, MemoryBatches
from .options import DataOptions
from .seeding import drawn_from
from .transforms import (
    Preprocessing,
    image_size,
    preprocessing,
    test_transform,
    training_transform,
)

__all__ = [
    "Augmented",
    "Batch",
    "Data",
    "DataOptions",
    "EpochOrder",
    "KeptBatches",
    "Loader",
    "LoaderDiedError",
    "MemoryBatches",
    "Preprocessing",
    "Readable",
    "check_stamps",
    "checked",
    "collate",
    "drawn_from",
    "file_of",
    "image_size",
    "images",
    "open_test",
    "preprocessing",
    "stamps",
    "test_loader",
    "test_transform",
    "training_loader",
    "training_transform",
]
