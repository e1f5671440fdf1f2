"""Fine-tuning: from a trained network to a dynamic one, by a recipe."""

from ..errors import TrainingError
from .recipe import Recipe, read_recipe
from .run import Result, finetune
from .stops import Interrupted

__all__ = ["Interrupted", "Recipe", "Result", "TrainingError", "finetune", "read_recipe"]
