"""Saving by methods of another library, which would lose a conversion."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import ConversionError
from ..nn import MultiPathBlock


def saves_itself(kind: type) -> bool:
    """Return whether modules of a class have a `save_pretrained`, as transformers' have."""
    return callable(getattr(kind, "save_pretrained", None))


def save_or_refuse(base: type[nn.Module]) -> Any:
    """Return a `save_pretrained` that refuses what `from_pretrained` could not load again.

    A trainer names the state dict, if only as None: its checkpoints go into the same network again.
    """

    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        converted = any(isinstance(module, MultiPathBlock) for module in self.modules())
        if converted and "state_dict" not in kwargs:
            raise ConversionError(
                f"save_pretrained: {base.__name__} is converted, and from_pretrained would build "
                "the dense network with random weights in the place of its blocks. Save with "
                "dmnn_convert.save(model, directory), and load with "
                "dmnn_convert.load(directory, model=<your unconverted network>)."
            )
        return base.save_pretrained(self, *args, **kwargs)  # type: ignore[attr-defined]

    return save_pretrained
