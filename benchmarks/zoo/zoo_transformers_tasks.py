"""transformers' networks for dense tasks, videos and sounds, small, with a human's count of blocks.

Of a detector or a segmenter, the backbone's blocks count, and one MLP for each layer of its
encoder and decoder.
"""

from __future__ import annotations

from zoo_human import Config, Network
from zoo_transformers_images import FOUR, ROOT, TOKENS

_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_BASIC = {
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 64, 64],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
_RESNET = Config("ResNet", {**_BASIC, "out_features": ["stage4"]})
_LEVELS = Config("ResNet", {**_BASIC, "out_features": _STAGES[1:]})
_PYRAMID = Config("ResNet", {**_BASIC, "out_features": _STAGES})
_LAYERS = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 5,
}
_DETR = {"d_model": 32, **_LAYERS}
_RT_DETR = {
    "backbone_config": Config("RTDetrResNet", {**_BASIC, "out_features": _STAGES[1:]}),
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [32, 64, 64],
    "encoder_ffn_dim": 64,
    "encoder_attention_heads": 2,
    "d_model": 32,
    "num_queries": 5,
    "decoder_in_channels": [32, 32, 32],
    "decoder_layers": 2,
    "decoder_ffn_dim": 64,
    "decoder_attention_heads": 2,
    "num_denoising": 0,
}
_SWIN = {**ROOT, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2], "image_size": 64}
_NECK = {"neck_hidden_sizes": [8, 16, 32, 32], "fusion_hidden_size": 16}
_TOWER = {**TOKENS, "num_hidden_layers": 4, "reshape_hidden_states": False}
_VIDEO = {name: value for name, value in TOKENS.items() if name != "patch_size"}
_SOUND = {name: value for name, value in _VIDEO.items() if name != "image_size"}
_WAVE = {
    **_SOUND,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_feat_extract_layers": 3,
}

TASKS = {
    "DetrForObjectDetection": Network("Detr", {**_DETR, "backbone_config": _RESNET}, 8),
    "ConditionalDetrForObjectDetection": Network(
        "ConditionalDetr", {**_DETR, "backbone_config": _RESNET}, 8
    ),
    "DeformableDetrForObjectDetection": Network(
        "DeformableDetr", {**_DETR, "backbone_config": _LEVELS, "num_feature_levels": 3}, 8
    ),
    "TableTransformerForObjectDetection": Network(
        "TableTransformer", {**_DETR, "backbone_config": _RESNET}, 8
    ),
    "DabDetrForObjectDetection": Network(
        "DabDetr", {"hidden_size": 32, **_LAYERS, "backbone_config": _RESNET}, 8
    ),
    # Four blocks of the backbone, one MLP of the encoder, four CSP layers, two MLPs of the decoder.
    "RTDetrForObjectDetection": Network("RTDetr", _RT_DETR, 11),
    "MaskFormerForInstanceSegmentation": Network(
        "MaskFormer",
        {
            "backbone_config": _PYRAMID,
            "decoder_config": Config("Detr", _DETR),  # whose encoder is not used
            "fpn_feature_size": 32,
            "mask_feature_size": 32,
        },
        6,
    ),
    "Mask2FormerForUniversalSegmentation": Network(
        "Mask2Former",
        {
            "backbone_config": Config("Swin", {**_SWIN, "out_features": _STAGES}),
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 64,
            "dim_feedforward": 64,
            "encoder_layers": 2,
            "decoder_layers": 3,  # one less than that is built
            "num_attention_heads": 2,
            "num_queries": 5,
        },
        8,
    ),
    "UperNetForSemanticSegmentation": Network(
        "UperNet",
        {
            "backbone_config": _PYRAMID,
            "hidden_size": 16,
            "auxiliary_channels": 8,
            "auxiliary_in_channels": 64,
        },
        4,
    ),
    "UperNetForSemanticSegmentation-convnext": Network(
        "UperNet",
        {
            "backbone_config": Config(
                "ConvNext", {**FOUR, "depths": [1, 1, 2, 1], "out_features": _STAGES}
            ),
            "hidden_size": 16,
            "auxiliary_channels": 8,
            "auxiliary_in_channels": 32,
        },
        5,
    ),
    # The fusion stage has two residual units a level, and runs one alone on the first.
    "DPTForDepthEstimation": Network(
        "DPT",
        {
            **TOKENS,
            **_NECK,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "initializer_range": 0.2,
        },
        11,
    ),
    "DepthAnythingForDepthEstimation": Network(
        "DepthAnything",
        {
            "backbone_config": Config(
                "Dinov2", {**_TOWER, "mlp_ratio": 2, "out_features": _STAGES}
            ),
            "patch_size": 8,
            "reassemble_hidden_size": 32,
            "head_hidden_size": 8,
            "depth_estimation_type": "metric",  # whose output is not zero for most weights
            "max_depth": 10,
            "initializer_range": 0.2,
            **_NECK,
        },
        11,
        (3, 32, 32),
    ),
    "MobileNetV2ForSemanticSegmentation": Network("MobileNetV2", {"depth_multiplier": 0.35}, 17),
    "VitPoseForPoseEstimation": Network(
        "VitPose",
        {
            "backbone_config": Config(
                "VitPoseBackbone",
                {
                    **TOKENS,
                    "image_size": [32, 32],
                    "patch_size": [8, 8],
                    "out_features": ["stage2"],
                },
            ),
        },
        2,
        (3, 32, 32),
    ),
    "SamVisionModel": Network(
        "SamVision",
        {
            **TOKENS,
            "mlp_dim": 64,
            "output_channels": 16,
            "image_size": 64,
            "window_size": 4,
            "global_attn_indexes": [1],
        },
        2,
    ),
    "Swin2SRForImageSuperResolution": Network(
        "Swin2SR", {**ROOT, "depths": [2, 2], "image_size": 32}, 4
    ),
    "ViTMAEForPreTraining": Network(
        "ViTMAE",
        {
            **TOKENS,
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 64,
        },
        4,
    ),
    "TimmBackbone": Network(
        "TimmBackbone", {"backbone": "resnet18", "use_pretrained_backbone": False}, 8
    ),
    "PPLCNetForImageClassification": Network("PPLCNet", {}, 13),
    "ConvNextBackbone": Network(
        "ConvNext",
        {"hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2, "out_features": _STAGES[:2]},
        4,
    ),
    "MetaClip2VisionModel": Network("MetaClip2Vision", TOKENS, 2),
    "CLIPSegVisionModel": Network("CLIPSegVision", TOKENS, 2),
    "BlipVisionModel": Network("BlipVision", TOKENS, 2),
    "VideoMAEForVideoClassification": Network(
        "VideoMAE", {**TOKENS, "num_frames": 4}, 2, (4, 3, 32, 32)
    ),
    "VivitForVideoClassification": Network(
        "Vivit", {**_VIDEO, "num_frames": 4, "tubelet_size": [2, 8, 8]}, 2, (4, 3, 32, 32)
    ),
    "TimesformerForVideoClassification": Network(
        "Timesformer", {**TOKENS, "num_frames": 4}, 2, (4, 3, 32, 32)
    ),
    "ASTForAudioClassification": Network(
        "AST",
        {
            **_SOUND,
            "max_length": 64,
            "num_mel_bins": 32,
            "patch_size": 8,
            "frequency_stride": 8,
            "time_stride": 8,
        },
        2,
        (64, 32),
    ),
    # Two MLPs, and the convolution that tells positions.
    "Wav2Vec2ForSequenceClassification": Network("Wav2Vec2", _WAVE, 3, (4000,)),
    "HubertForSequenceClassification": Network("Hubert", _WAVE, 3, (4000,)),
    "WhisperForAudioClassification": Network(
        "Whisper",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_layers": 1,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 64,
            "max_source_positions": 100,
            "num_mel_bins": 20,
        },
        2,
        (20, 200),
    ),
}
"""Names in the table -> networks."""
