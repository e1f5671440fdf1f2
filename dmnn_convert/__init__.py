"""Turn CNNs into Dynamic Multi-path Neural Networks.

``model, table = dmnn_convert.dynamize(resnet50(), N=2)``
"""

from .block import MultiPathBlock, set_execution
from .config import DynamizeConfig, GateConfig
from .convert import Dynamized, dynamize
from .errors import DmnnError
from .find import Block, find_blocks
from .flops import FlopsTable
from .gate import (
    GateChain,
    GateController,
    force_gates,
    gate_parameters,
    strip_category_heads,
)
from .record import Paths, record_paths

__version__ = "0.1.0"
