"""Fine-tuning: from a trained network to a dynamic one, by a recipe."""

from typing import TYPE_CHECKING

from ..optional import lazy_exports
from .file_names import CONFIG as CONFIG
from .file_names import RESULT as RESULT
from .recipe import Recipe as Recipe
from .recipe_files import built_in as built_in
from .recipe_files import read_recipe as read_recipe

if TYPE_CHECKING:
    from .public import *  # noqa: F403
else:
    # Options must not wait for PyTorch.
    __getattr__, __dir__ = lazy_exports(__name__)
