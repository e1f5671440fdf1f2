"""Dynamic Multi-path Neural Networks from any CNN.

``model, table = dmnn_convert.dynamize(resnet50(), N=2)``
"""

from typing import TYPE_CHECKING

from .optional import lazy_exports

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .public import *  # noqa: F403
else:
    # The version, the command's help and `load_deployed` must not wait for PyTorch.
    __getattr__, __dir__ = lazy_exports(__name__, {"load_deployed": "deployment"})
