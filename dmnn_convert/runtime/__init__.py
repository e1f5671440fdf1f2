"""Inference that is really faster: prepared forms of converted models, and their benchmark."""

from .alone import ENGINES, Alone, Engine, file_alone, is_installed
from .benchmark import Benchmark
from .clock import ImageClock
from .exported import NotExported
from .folded_controller import folded, is_foldable
from .onnx_file import exporting, write_onnx, write_program
from .prepare import prepare
from .prepared_model import PreparedModel
from .session import open_session
from .timing import Timing
from .tuning import name_of, tf32

__all__ = [
    "ENGINES",
    "Alone",
    "Benchmark",
    "Engine",
    "ImageClock",
    "NotExported",
    "PreparedModel",
    "Timing",
    "exporting",
    "file_alone",
    "folded",
    "is_foldable",
    "is_installed",
    "name_of",
    "open_session",
    "prepare",
    "tf32",
    "write_onnx",
    "write_program",
]
