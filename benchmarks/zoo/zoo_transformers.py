"""Networks of transformers from small configurations, as its users build them."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from zoo_human import Config, Size
from zoo_transformers_images import CLASSIFIERS
from zoo_transformers_tasks import TASKS

MODELS = {**CLASSIFIERS, **TASKS}
"""Names in the table -> networks."""


class Transformers:
    """Networks of transformers from small configurations."""

    size_option = ""

    def names(self) -> list[str]:
        """List the models."""
        return list(MODELS)

    def family(self, name: str) -> str:
        """Return the name of the configuration."""
        return MODELS[name].kind if name in MODELS else re.split("For|Model", name)[0]

    def input_size(self, name: str) -> Size:
        """Return the size that the table or the configuration tells, or one that is small."""
        network = MODELS[name]
        if network.size is not None:
            return network.size
        size = network.settings.get("image_size", 64)
        side = size[0] if isinstance(size, list) else size
        return (3, side, side)

    def is_fixed(self, name: str) -> bool:
        """Tell whether another input size needs another instance."""
        return "image_size" in MODELS[name].settings

    def part(self, name: str) -> str:
        """Return "": all of every model is checked."""
        return ""

    def human(self, name: str) -> int | None:
        """Return how many blocks a human counts; None for a model that nobody has counted."""
        return MODELS[name].human if name in MODELS else None

    def build(self, name: str, **options: Any) -> nn.Module:
        """Build the model with random weights."""
        import transformers

        network = MODELS[name]
        config = _config(Config(network.kind, {**network.settings, **options}))
        model: nn.Module = getattr(transformers, name.partition("-")[0])(config)
        return model


def _config(wanted: Config) -> Any:
    import transformers

    settings = {
        name: _config(value) if isinstance(value, Config) else value
        for name, value in wanted.settings.items()
    }
    return getattr(transformers, f"{wanted.kind}Config")(**settings)
