"""Small configurations of the networks of transformers, as its users build them."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

_TOKENS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_ROOT = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
_STAGES = {"hidden_sizes": [16, 32], "depths": [2, 2]}
_FOUR = {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]}
_PYRAMID = {**_FOUR, "num_attention_heads": [1, 2, 2, 2]}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNetForImageClassification": ("ResNet", {**_STAGES, "embedding_size": 16}),
    "ResNetForImageClassification-basic": (
        "ResNet",
        {**_STAGES, "embedding_size": 16, "layer_type": "basic"},
    ),
    "RegNetForImageClassification": (
        "RegNet",
        {"embedding_size": 32, "hidden_sizes": [64, 128], "depths": [2, 2], "groups_width": 16},
    ),
    "BitForImageClassification": (
        "Bit",
        {**_STAGES, "embedding_size": 16, "num_groups": 4},
    ),
    "ConvNextForImageClassification": ("ConvNext", {**_STAGES, "num_stages": 2}),
    "ConvNextV2ForImageClassification": ("ConvNextV2", {**_STAGES, "num_stages": 2}),
    "DINOv3ConvNextModel": ("DINOv3ConvNext", _FOUR),
    "MobileNetV1ForImageClassification": ("MobileNetV1", {"depth_multiplier": 0.5}),
    "MobileNetV2ForImageClassification": ("MobileNetV2", {"depth_multiplier": 0.35}),
    "EfficientNetForImageClassification": (
        "EfficientNet",
        {
            "width_coefficient": 0.5,
            "depth_coefficient": 1.0,
            "hidden_dim": 640,
            "initializer_range": 0.2,
        },
    ),
    "MobileViTForImageClassification": (
        "MobileViT",
        {
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [8, 16, 16, 24, 32, 40, 64],
            "initializer_range": 0.2,
        },
    ),
    "MobileViTV2ForImageClassification": (
        "MobileViTV2",
        {"width_multiplier": 0.5, "initializer_range": 0.2},
    ),
    "HGNetV2ForImageClassification": ("HGNetV2", {}),
    "TextNetForImageClassification": ("TextNet", {}),
    "FocalNetForImageClassification": (
        "FocalNet",
        {
            "embed_dim": 16,
            "depths": [1, 1],
            "hidden_sizes": [16, 32],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
            "image_size": 32,
        },
    ),
    "PoolFormerForImageClassification": (
        "PoolFormer",
        {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]},
    ),
    "SwiftFormerForImageClassification": (
        "SwiftFormer",
        {"embed_dims": [16, 32, 32, 64], "depths": [2, 1, 1, 1]},
    ),
    "LevitForImageClassification": (
        "Levit",
        {
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "image_size": 64,
        },
    ),
    "CvtForImageClassification": ("Cvt", {"depth": [1, 2, 3]}),
    "SegformerForImageClassification": ("Segformer", {**_PYRAMID, "decoder_hidden_size": 32}),
    "SegformerForSemanticSegmentation": ("Segformer", {**_PYRAMID, "decoder_hidden_size": 32}),
    "PvtV2ForImageClassification": ("PvtV2", _PYRAMID),
    "PvtForImageClassification": ("Pvt", {**_PYRAMID, "image_size": 64}),
    "GLPNForDepthEstimation": ("GLPN", {**_PYRAMID, "decoder_hidden_size": 32}),
    "SwinForImageClassification": ("Swin", {**_ROOT, "image_size": 32, "patch_size": 4}),
    "Swinv2ForImageClassification": ("Swinv2", {**_ROOT, "image_size": 32, "patch_size": 4}),
    "DonutSwinModel": ("DonutSwin", {**_ROOT, "image_size": 32, "patch_size": 4}),
    "ViTForImageClassification": ("ViT", _TOKENS),
    "DeiTForImageClassification": ("DeiT", _TOKENS),
    "BeitForImageClassification": ("Beit", _TOKENS),
    "Data2VecVisionForImageClassification": ("Data2VecVision", _TOKENS),
    "Dinov2ForImageClassification": ("Dinov2", _TOKENS),
    "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegisters", _TOKENS),
    "DINOv3ViTModel": ("DINOv3ViT", _TOKENS),
    "ViTMSNForImageClassification": ("ViTMSN", _TOKENS),
    "IJepaForImageClassification": ("IJepa", _TOKENS),
    "CLIPVisionModel": ("CLIPVision", _TOKENS),
    "SiglipVisionModel": ("SiglipVision", _TOKENS),
    "YolosForObjectDetection": (
        "Yolos",
        {**_TOKENS, "image_size": [32, 32], "num_detection_tokens": 4},
    ),
    "VitDetModel": ("VitDet", {**_TOKENS, "pretrain_image_size": 32}),
    "HieraForImageClassification": (
        "Hiera",
        {
            "embed_dim": 16,
            "image_size": [64, 64],
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
        },
    ),
}
"""Names in the table -> the configuration's class, and what it is given."""


class Transformers:
    """Networks of transformers from small configurations."""

    size_option = ""

    def names(self) -> list[str]:
        """List the models."""
        return list(MODELS)

    def family(self, name: str) -> str:
        """Return the name of the configuration."""
        return MODELS[name][0] if name in MODELS else re.split("For|Model", name)[0]

    def input_size(self, name: str) -> tuple[int, ...]:
        """Return the size that the configuration tells, or one that is small."""
        size = MODELS[name][1].get("image_size", 64)
        side = size[0] if isinstance(size, list) else size
        return (3, side, side)

    def is_fixed(self, name: str) -> bool:
        """Tell whether another input size needs another instance."""
        return "image_size" in MODELS[name][1]

    def part(self, name: str) -> str:
        """Return "": all of every model is checked."""
        return ""

    def build(self, name: str, **options: Any) -> nn.Module:
        """Build the model with random weights."""
        import transformers

        kind, settings = MODELS[name]
        config = getattr(transformers, f"{kind}Config")(**settings, **options)
        model: nn.Module = getattr(transformers, name.partition("-")[0])(config)
        return model
