"""The zoos that the sweep walks over: names, families, input sizes, models with random weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import timm
from torch import nn
from torchvision import models
from zoo_coverage import Row
from zoo_mmpretrain import MMPRETRAIN
from zoo_monai import Monai
from zoo_others import OTHERS
from zoo_transformers import Transformers

Size = tuple[int, ...]


class Library(Protocol):
    """A zoo: nothing in it is downloaded, every model is built with random weights.

    Attributes:
        size_option: the constructor's name for another input size; "" where there is none.
    """

    size_option: str

    def names(self) -> list[str]:
        """List the models."""

    def family(self, name: str) -> str:
        """Return the module that defines the architecture."""

    def input_size(self, name: str) -> Size:
        """Return the declared shape of one image."""

    def is_fixed(self, name: str) -> bool:
        """Tell whether another input size needs another instance."""

    def part(self, name: str) -> str:
        """Return the remark on a model of which only a part is checked; "" where all of it is."""

    def build(self, name: str, **options: Any) -> nn.Module:
        """Build the model."""


class Timm:
    """All of timm."""

    size_option = "img_size"

    def names(self) -> list[str]:
        """List the models."""
        return list(timm.list_models())

    def family(self, name: str) -> str:
        """Return the module that defines the architecture; the name's start if timm lacks it."""
        if not timm.is_model(name):
            return name.partition("_")[0]
        return str(timm.models.model_entrypoint(name).__module__.rpartition(".")[2])

    def input_size(self, name: str) -> Size:
        """Return the declared shape of one image."""
        return tuple(timm.models.get_pretrained_cfg(name).input_size)

    def is_fixed(self, name: str) -> bool:
        """Tell whether another input size needs another instance."""
        return bool(timm.models.get_pretrained_cfg(name).fixed_input_size)

    def part(self, name: str) -> str:
        """Return "": all of every model is checked."""
        return ""

    def build(self, name: str, **options: Any) -> nn.Module:
        """Build the model."""
        return timm.create_model(name, pretrained=False, **options)


class Torchvision:
    """torchvision's models for classification."""

    size_option = ""

    def names(self) -> list[str]:
        """List the models."""
        return list(models.list_models(module=models))

    def family(self, name: str) -> str:
        """Return the module that defines the architecture; the name's start if it is unknown."""
        if name not in models.list_models():
            return name.partition("_")[0]
        return str(models.get_model_builder(name).__module__.rpartition(".")[2])

    def input_size(self, name: str) -> Size:
        """Return the size of the default weights; of the default instance where that is fixed."""
        if name.startswith("vit_"):
            return (3, 224, 224)
        crop = models.get_model_weights(name).DEFAULT.transforms().crop_size
        return (3, *(int(side) for side in (crop * 2)[:2]))

    def is_fixed(self, name: str) -> bool:
        """Tell whether another input size needs another instance."""
        return False

    def part(self, name: str) -> str:
        """Return "": all of every model is checked."""
        return ""

    def build(self, name: str, **options: Any) -> nn.Module:
        """Build the model."""
        accepted = inspect.signature(models.get_model_builder(name)).parameters
        if "weights_backbone" in accepted:
            options["weights_backbone"] = None
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False  # minutes of scipy for other random weights
        return models.get_model(name, weights=None, **options)


class TorchvisionDense(Torchvision):
    """torchvision's models for detection (their backbones), segmentation and video."""

    def names(self) -> list[str]:
        """List the models."""
        modules = (models.detection, models.segmentation, models.video)
        return sorted(name for module in modules for name in models.list_models(module=module))

    def input_size(self, name: str) -> Size:
        """Return the shape that the name tells, or a usual one."""
        if self._task(name) == "video":
            return (3, 16, 224, 224)
        side = next((side for side in (300, 320) if str(side) in name), 224)
        return (3, side, side)

    def part(self, name: str) -> str:
        """Return that of a detector the backbone alone is checked."""
        return "checked the backbone" if self._task(name) == "detection" else ""

    def build(self, name: str, **options: Any) -> nn.Module:
        """Build the model, of a detector the backbone, which is the part to convert."""
        model = super().build(name, **options)
        return model.backbone if self._task(name) == "detection" else model

    def _task(self, name: str) -> str:
        return str(models.get_model_builder(name).__module__.split(".")[2])


LIBRARIES: Mapping[str, Library] = {
    "timm": Timm(),
    "torchvision": Torchvision(),
    "torchvision-dense": TorchvisionDense(),
    "transformers": Transformers(),
    "monai": Monai(),
    "mmpretrain": MMPRETRAIN,
    **OTHERS,
}


def human_count(row: Row) -> int | None:
    """Return how many blocks a human counts in the model of a row; None if nobody has counted."""
    human = getattr(LIBRARIES.get(row.library), "human", None)
    return human(row.model) if human else None
