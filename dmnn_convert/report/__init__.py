"""Tables and pictures for people, and the same for programs."""

from .conversion import ConversionReport
from .curves import Curve, CurveRow, curve
from .evaluation import EvaluationReport
from .figure import check_picture
from .picture import plot_evaluation
from .timings import as_table, plot_timings, setting

__all__ = [
    "ConversionReport",
    "Curve",
    "CurveRow",
    "EvaluationReport",
    "as_table",
    "check_picture",
    "curve",
    "plot_evaluation",
    "plot_timings",
    "setting",
]
