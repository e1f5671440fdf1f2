"""The building blocks of a converted network: multi-path blocks, controllers, gates."""

from .batch_norm import AnyBatchNorm
from .block import MultiPathBlock, SqueezingSubBlock, multi_path_blocks, set_execution
from .controller import GateController, controllers, gate_parameters, strip_category_heads
from .float32 import without_autocast
from .force import GivenGates, along_path, force_gates, given_gates
from .fused import steps_of
from .gate_chain import Forcing, GateChain, GatePass, Recorder
from .gumbel import with_one_kept
from .modes import in_evaluation
from .outputs import tensors_in
from .plain import is_plain
from .record import Paths, record_paths

__all__ = [
    "AnyBatchNorm",
    "Forcing",
    "GateChain",
    "GateController",
    "GatePass",
    "GivenGates",
    "MultiPathBlock",
    "Paths",
    "Recorder",
    "SqueezingSubBlock",
    "along_path",
    "controllers",
    "force_gates",
    "gate_parameters",
    "given_gates",
    "in_evaluation",
    "is_plain",
    "multi_path_blocks",
    "record_paths",
    "set_execution",
    "steps_of",
    "strip_category_heads",
    "tensors_in",
    "with_one_kept",
    "without_autocast",
]
