"""Accuracy, losses and paths of a model over a data set."""

from .block_errors import block_errors
from .evaluate import evaluate, evaluate_dense
from .figures import PERCENTILES, DenseEvaluation, Evaluation, Spread
from .seen import SeenBatch

__all__ = [
    "PERCENTILES",
    "DenseEvaluation",
    "Evaluation",
    "SeenBatch",
    "Spread",
    "block_errors",
    "evaluate",
    "evaluate_dense",
]
