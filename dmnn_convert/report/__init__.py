"""Tables and pictures for people, and the same for programs."""

from .conversion import ConversionReport
from .curves import Curve, CurveRow, curve
from .evaluation import EvaluationReport
from .explanation import checked_file, explain
from .figure import check_picture
from .image_figures import ExitFigures, Explanation
from .picture import plot_evaluation
from .timings import as_table, plot_timings, setting

__all__ = [
    "ConversionReport",
    "Curve",
    "CurveRow",
    "EvaluationReport",
    "ExitFigures",
    "Explanation",
    "as_table",
    "check_picture",
    "checked_file",
    "curve",
    "explain",
    "plot_evaluation",
    "plot_timings",
    "setting",
]
