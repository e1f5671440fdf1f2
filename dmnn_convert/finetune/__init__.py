"""Fine-tuning: from a trained network to a dynamic one, by a recipe."""

from .recipe import Recipe, read_recipe
from .run import Interrupted, Result, finetune
from .trainer import TrainingError

__all__ = ["Interrupted", "Recipe", "Result", "TrainingError", "finetune", "read_recipe"]
