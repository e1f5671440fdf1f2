"""Tables and pictures for people, and the same for programs."""

from .conversion import ConversionReport
from .evaluation import EvaluationReport
from .picture import plot_evaluation

__all__ = ["ConversionReport", "EvaluationReport", "plot_evaluation"]
