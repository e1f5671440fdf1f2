"""Folders of images as batches: files, transforms, loaders, seeds."""

from typing import TYPE_CHECKING

from ..optional import lazy_exports
from .options import DataOptions as DataOptions

if TYPE_CHECKING:
    from .public import *  # noqa: F403
else:
    # Options must not wait for PyTorch.
    __getattr__, __dir__ = lazy_exports(__name__)
