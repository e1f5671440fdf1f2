"""Deployment: networks as files that inference engines run, without PyTorch."""

from typing import TYPE_CHECKING

from ..optional import lazy_exports
from .loaded import load_deployed as load_deployed
from .run_deployed import DESCRIPTION as DESCRIPTION

if TYPE_CHECKING:
    from .public import *  # noqa: F403
else:
    # Running a deployed network must not wait for PyTorch.
    __getattr__, __dir__ = lazy_exports(__name__)
