"""Turn CNNs into Dynamic Multi-path Neural Networks.

``model, table = dmnn_convert.dynamize(resnet50(), N=2)``
"""

from .budget import (
    Exits,
    Fitted,
    LevelLosses,
    at_level,
    estimate_levels,
    freeze,
    level_losses,
    level_path,
    level_statistics,
    record_exits,
    search_levels,
    set_budget,
)
from .categories import Categories, categories_from, cifar100, clusters, imagenet58, read_categories
from .config import DynamizeConfig, GateConfig
from .convert import Dynamized, dynamize
from .distributed import shard
from .errors import (
    AlreadyConvertedError,
    ArgumentError,
    CheckpointError,
    ConversionError,
    DmnnError,
    GateMismatchError,
    NoBlocksFoundError,
    PretrainedError,
    RecordingError,
    UnknownArchitectureError,
)
from .evaluation import DenseEvaluation, Evaluation, block_errors, evaluate, evaluate_dense
from .find import Block, find_blocks
from .flops import FlopsTable
from .io import Cascade, load, load_level, load_source_checkpoint, save, save_level
from .io import zoo as zoo
from .loss import DMNNLoss, LossParts, category_loss, resource_loss, stage_weights
from .nn import (
    GateChain,
    GateController,
    MultiPathBlock,
    Paths,
    force_gates,
    gate_parameters,
    record_paths,
    set_execution,
    strip_category_heads,
)
from .refit import calibrate, reconstruct, reestimate_norms
from .report import Curve, CurveRow, curve
from .runtime import PreparedModel, prepare

__version__ = "0.1.0"


__all__ = [
    "AlreadyConvertedError",
    "ArgumentError",
    "Block",
    "Cascade",
    "Categories",
    "CheckpointError",
    "ConversionError",
    "Curve",
    "CurveRow",
    "DMNNLoss",
    "DenseEvaluation",
    "DmnnError",
    "DynamizeConfig",
    "Dynamized",
    "Evaluation",
    "Exits",
    "Fitted",
    "FlopsTable",
    "GateChain",
    "GateConfig",
    "GateController",
    "GateMismatchError",
    "LevelLosses",
    "LossParts",
    "MultiPathBlock",
    "NoBlocksFoundError",
    "Paths",
    "PreparedModel",
    "PretrainedError",
    "RecordingError",
    "UnknownArchitectureError",
    "at_level",
    "block_errors",
    "calibrate",
    "categories_from",
    "category_loss",
    "cifar100",
    "clusters",
    "curve",
    "dynamize",
    "estimate_levels",
    "evaluate",
    "evaluate_dense",
    "find_blocks",
    "force_gates",
    "freeze",
    "gate_parameters",
    "imagenet58",
    "level_losses",
    "level_path",
    "level_statistics",
    "load",
    "load_level",
    "load_source_checkpoint",
    "prepare",
    "read_categories",
    "reconstruct",
    "record_exits",
    "record_paths",
    "reestimate_norms",
    "resource_loss",
    "save",
    "save_level",
    "search_levels",
    "set_budget",
    "set_execution",
    "shard",
    "stage_weights",
    "strip_category_heads",
]
