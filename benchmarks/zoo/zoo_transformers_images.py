"""transformers' classifiers and towers for images, small, with the blocks that a human counts."""

from __future__ import annotations

from zoo_human import Network

TOKENS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
ROOT = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
STAGES = {"hidden_sizes": [16, 32], "depths": [2, 2]}
FOUR = {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]}
PYRAMID = {**FOUR, "num_attention_heads": [1, 2, 2, 2]}

CLASSIFIERS = {
    "ResNetForImageClassification": Network("ResNet", {**STAGES, "embedding_size": 16}, 4),
    "ResNetForImageClassification-basic": Network(
        "ResNet", {**STAGES, "embedding_size": 16, "layer_type": "basic"}, 4
    ),
    "RegNetForImageClassification": Network(
        "RegNet",
        {"embedding_size": 32, "hidden_sizes": [64, 128], "depths": [2, 2], "groups_width": 16},
        4,
    ),
    "BitForImageClassification": Network(
        "Bit", {**STAGES, "embedding_size": 16, "num_groups": 4}, 4
    ),
    "ConvNextForImageClassification": Network("ConvNext", {**STAGES, "num_stages": 2}, 4),
    "ConvNextV2ForImageClassification": Network("ConvNextV2", {**STAGES, "num_stages": 2}, 4),
    "DINOv3ConvNextModel": Network("DINOv3ConvNext", FOUR, 4),
    "MobileNetV1ForImageClassification": Network("MobileNetV1", {"depth_multiplier": 0.5}, 13),
    "MobileNetV2ForImageClassification": Network("MobileNetV2", {"depth_multiplier": 0.35}, 17),
    "EfficientNetForImageClassification": Network(
        "EfficientNet",
        {
            "width_coefficient": 0.5,
            "depth_coefficient": 1.0,
            "hidden_dim": 640,
            "initializer_range": 0.2,
        },
        16,
    ),
    "MobileViTForImageClassification": Network(
        "MobileViT",
        {
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [8, 16, 16, 24, 32, 40, 64],
            "initializer_range": 0.2,
        },
        16,
    ),
    "MobileViTV2ForImageClassification": Network(
        "MobileViTV2", {"width_multiplier": 0.5, "initializer_range": 0.2}, 15
    ),
    "HGNetV2ForImageClassification": Network("HGNetV2", {}, 2),
    "TextNetForImageClassification": Network("TextNet", {}, 11),
    "FocalNetForImageClassification": Network(
        "FocalNet",
        {
            "embed_dim": 16,
            "depths": [1, 1],
            "hidden_sizes": [16, 32],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
            "image_size": 32,
        },
        4,
    ),
    "PoolFormerForImageClassification": Network(
        "PoolFormer", {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]}, 4
    ),
    "SwiftFormerForImageClassification": Network(
        "SwiftFormer", {"embed_dims": [16, 32, 32, 64], "depths": [2, 1, 1, 1]}, 9
    ),
    "LevitForImageClassification": Network(
        "Levit",
        {
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "image_size": 64,
        },
        5,
    ),
    "CvtForImageClassification": Network("Cvt", {"depth": [1, 2, 3]}, 6),
    "SegformerForImageClassification": Network(
        "Segformer", {**PYRAMID, "decoder_hidden_size": 32}, 4
    ),
    "SegformerForSemanticSegmentation": Network(
        "Segformer", {**PYRAMID, "decoder_hidden_size": 32}, 4
    ),
    "PvtV2ForImageClassification": Network("PvtV2", PYRAMID, 4),
    "PvtForImageClassification": Network("Pvt", {**PYRAMID, "image_size": 64}, 4),
    "GLPNForDepthEstimation": Network("GLPN", {**PYRAMID, "decoder_hidden_size": 32}, 4),
    "SwinForImageClassification": Network("Swin", {**ROOT, "image_size": 32, "patch_size": 4}, 2),
    "Swinv2ForImageClassification": Network(
        "Swinv2", {**ROOT, "image_size": 32, "patch_size": 4}, 2
    ),
    "DonutSwinModel": Network("DonutSwin", {**ROOT, "image_size": 32, "patch_size": 4}, 2),
    "ViTForImageClassification": Network("ViT", TOKENS, 2),
    "DeiTForImageClassification": Network("DeiT", TOKENS, 2),
    "BeitForImageClassification": Network("Beit", TOKENS, 2),
    "Data2VecVisionForImageClassification": Network("Data2VecVision", TOKENS, 2),
    "Dinov2ForImageClassification": Network("Dinov2", TOKENS, 2),
    "Dinov2WithRegistersForImageClassification": Network("Dinov2WithRegisters", TOKENS, 2),
    "DINOv3ViTModel": Network("DINOv3ViT", TOKENS, 2),
    "ViTMSNForImageClassification": Network("ViTMSN", TOKENS, 2),
    "IJepaForImageClassification": Network("IJepa", TOKENS, 2),
    "CLIPVisionModel": Network("CLIPVision", TOKENS, 2),
    "SiglipVisionModel": Network("SiglipVision", TOKENS, 3),
    "YolosForObjectDetection": Network(
        "Yolos", {**TOKENS, "image_size": [32, 32], "num_detection_tokens": 4}, 2
    ),
    "VitDetModel": Network("VitDet", {**TOKENS, "pretrain_image_size": 32}, 2),
    "HieraForImageClassification": Network(
        "Hiera",
        {
            "embed_dim": 16,
            "image_size": [64, 64],
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
        },
        4,
    ),
}
"""Names in the table -> networks."""
