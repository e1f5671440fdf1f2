"""The names that fine-tuning exports, whose import loads PyTorch."""

from ..errors import TrainingError
from .eval_batches import EvaluationBatches, evaluation_options
from .file_names import CONFIG, LAST, RESULT
from .network import check_logits
from .recipe import Recipe
from .recipe_files import built_in, read_recipe
from .run import Result, finetune
from .source import build_source
from .stops import Interrupted, workers_watched

__all__ = [
    "CONFIG",
    "LAST",
    "RESULT",
    "EvaluationBatches",
    "Interrupted",
    "Recipe",
    "Result",
    "TrainingError",
    "build_source",
    "built_in",
    "check_logits",
    "evaluation_options",
    "finetune",
    "read_recipe",
    "workers_watched",
]
