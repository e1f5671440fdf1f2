"""Tables and pictures for people, and the same for programs."""

from .conversion import ConversionReport
from .evaluation import EvaluationReport
from .figure import check_picture
from .picture import plot_evaluation
from .timings import as_table, plot_timings, setting

__all__ = [
    "ConversionReport",
    "EvaluationReport",
    "as_table",
    "check_picture",
    "plot_evaluation",
    "plot_timings",
    "setting",
]
