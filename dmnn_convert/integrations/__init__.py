"""Dynamic training and sharing inside other people's tools: Lightning, transformers, the Hub.

`dmnn_convert.integrations.lightning` and `.transformers` import their libraries: take them where
you need them.
"""

from .card import model_card
from .hub import from_pretrained, push_to_hub

__all__ = [
    "from_pretrained",
    "model_card",
    "push_to_hub",
]
