"""The building blocks of a converted network: multi-path blocks, controllers, gates."""

from .batch_norm import AnyBatchNorm, scale_and_shift
from .block import MultiPathBlock, SqueezingSubBlock, multi_path_blocks, set_execution
from .controller import (
    GateController,
    controllers,
    gate_parameters,
    strip_category_heads,
)
from .conversion import attach, conversion_of, conversion_within, detach
from .float32 import without_autocast
from .force import GivenGates, along_path, force_gates, given_gates
from .fused import note_steps
from .gate_chain import Forcing, GateChain, GatePass, Recorder
from .gumbel import with_one_kept
from .kept import check_own_statistics, make_room
from .level_statistics import LevelStatistics, Statistics
from .modes import in_evaluation
from .narrow import Ends, depends_on_width, recounted, resized, shell
from .nested import NestedBlock, Shares, prefix
from .optimiser_groups import parameter_groups
from .outputs import tensors_in
from .parts import NestedParts, Parts
from .plain import is_plain, is_watched
from .record import Paths, record_paths

__all__ = [
    "AnyBatchNorm",
    "Ends",
    "Forcing",
    "GateChain",
    "GateController",
    "GatePass",
    "GivenGates",
    "LevelStatistics",
    "MultiPathBlock",
    "NestedBlock",
    "NestedParts",
    "Parts",
    "Paths",
    "Recorder",
    "Shares",
    "SqueezingSubBlock",
    "Statistics",
    "along_path",
    "attach",
    "check_own_statistics",
    "controllers",
    "conversion_of",
    "conversion_within",
    "depends_on_width",
    "detach",
    "force_gates",
    "gate_parameters",
    "given_gates",
    "in_evaluation",
    "is_plain",
    "is_watched",
    "make_room",
    "multi_path_blocks",
    "note_steps",
    "parameter_groups",
    "prefix",
    "record_paths",
    "recounted",
    "resized",
    "scale_and_shift",
    "set_execution",
    "shell",
    "strip_category_heads",
    "tensors_in",
    "with_one_kept",
    "without_autocast",
]
