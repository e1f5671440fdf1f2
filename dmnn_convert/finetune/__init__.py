"""Fine-tuning: from a trained network to a dynamic one, by a recipe."""

from ..errors import TrainingError
from .eval_batches import EvaluationBatches, evaluation_of
from .network import check_logits
from .option import UNSET, kind_inside, kind_of, may_be_none
from .recipe import Recipe
from .recipe_files import built_in, read_recipe
from .run import CONFIG, RESULT, Result, finetune
from .size_option import FORMS, image_size, picture_size
from .source import build_source
from .state import LAST
from .stops import Interrupted, workers_watched

__all__ = [
    "CONFIG",
    "FORMS",
    "LAST",
    "RESULT",
    "UNSET",
    "EvaluationBatches",
    "Interrupted",
    "Recipe",
    "Result",
    "TrainingError",
    "build_source",
    "built_in",
    "check_logits",
    "evaluation_of",
    "finetune",
    "image_size",
    "kind_inside",
    "kind_of",
    "may_be_none",
    "picture_size",
    "read_recipe",
    "workers_watched",
]
