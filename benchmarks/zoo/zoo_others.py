"""Zoos that pip installs, some of the networks of each: one or two of a family."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn


class Chosen:
    """Some networks of a zoo, all for images of one size.

    Args:
        models: their names.
        build: builds the network of a name, with random weights.
        side: of the images, in pixels.
    """

    size_option = ""

    def __init__(self, models: list[str], build: Callable[[str], nn.Module], side: int) -> None:
        self.models, self._build, self.side = models, build, side

    def names(self) -> list[str]:
        """List the models."""
        return self.models

    def family(self, name: str) -> str:
        """Return the start of the name."""
        return re.split(r"[-_\d]", name)[0]

    def input_size(self, name: str) -> tuple[int, ...]:
        """Return the shape of one image."""
        return (3, self.side, self.side)

    def is_fixed(self, name: str) -> bool:
        """Tell whether another input size needs another instance."""
        return False

    def part(self, name: str) -> str:
        """Return "": all of every model is checked."""
        return ""

    def build(self, name: str, **options: Any) -> nn.Module:
        """Build the model.

        Raises:
            TypeError: for options, which none of them takes.
        """
        if options:
            raise TypeError(f"{name} takes no options")
        return self._build(name)


class OpenClip(Chosen):
    """The image towers of open_clip's networks."""

    def input_size(self, name: str) -> tuple[int, ...]:
        """Return the shape that the configuration tells."""
        import open_clip

        side = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
        return (3, side, side)

    def part(self, name: str) -> str:
        """Return that the image tower alone is checked."""
        return "checked the image tower"


def _pytorchcv(name: str) -> nn.Module:
    from pytorchcv.model_provider import get_model

    model: nn.Module = get_model(name, pretrained=False)
    return model


def _smp(name: str) -> nn.Module:
    import segmentation_models_pytorch as smp

    kind, _, encoder = name.partition("-")
    model: nn.Module = getattr(smp, kind)(encoder, encoder_weights=None, classes=3)
    return model


def _efficientnet(name: str) -> nn.Module:
    from efficientnet_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name(name)
    return model


def _efficientnet_lite(name: str) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name(name)
    return model


def _ultralytics(name: str) -> nn.Module:
    from ultralytics.nn import tasks

    kinds = {
        "rtdetr": tasks.RTDETRDetectionModel,
        "cls": tasks.ClassificationModel,
        "seg": tasks.SegmentationModel,
        "pose": tasks.PoseModel,
        "obb": tasks.OBBModel,
        "sem": tasks.SemanticSegmentationModel,
        "depth": tasks.DepthModel,
    }
    kind = next((kinds[part] for part in name.split("-") if part in kinds), tasks.DetectionModel)
    model: nn.Module = kind(f"{name}.yaml", verbose=False)
    return model


def _open_clip(name: str) -> nn.Module:
    import open_clip

    images: nn.Module = open_clip.create_model(name, pretrained=None).visual
    return images


PYTORCHCV = [
    "resnet18_wd4",
    "preresnet18_wd4",
    "resnext14_16x4d",
    "seresnet18",
    "sepreresnet18",
    "resnesta18",
    "ibn_resnet50",
    "airnet50_1x64d_r2",
    "bam_resnet18",
    "cbam_resnet18",
    "sknet50",
    "scnet50",
    "regnetx002",
    "regnety002",
    "diaresnet18",
    "sharesnet18",
    "dla34",
    "hrnet_w18_small_v1",
    "squeezeresnet_v1_0",
    "sqnxt23_w1",
    "shufflenet_g3_wd4",
    "shufflenetv2_wd2",
    "menet108_8x1_g3",
    "mobilenet_wd4",
    "mobilenetv2_wd4",
    "mobilenetv3_small_w7d20",
    "igcv3_wd4",
    "ghostnet",
    "mnasnet_small",
    "proxylessnas_mobile",
    "fbnet_cb",
    "efficientnet_b0",
    "mixnet_s",
    "linknet_cityscapes",
    "tresnet_m",
    "darknet_tiny",
]

ULTRALYTICS = [
    *("yolov3-tiny", "yolov3", "yolov5n", "yolov6n", "yolov8n", "yolov9t", "yolov9c"),
    *("yolov10n", "yolov10s", "yolo11n", "yolo11m", "yolo12n", "yolo26n"),
    *("yolov8n-cls", "yolov8-cls-resnet50", "yolov8n-seg", "yolov8n-pose", "yolov8n-obb"),
    *("yolo11n-cls", "yolo11n-seg", "yolo11n-pose", "yolo12n-cls"),
    *("yolo26n-cls", "yolo26n-seg", "yolo26n-sem", "yolov8n-ghost", "yolov8n-p2", "yolov8n-p6"),
    *("rtdetr-l", "rtdetr-resnet50"),
]
OPEN_CLIP = [
    *("RN50", "RN50-quickgelu", "ViT-S-32", "ViT-S-16-alt", "ViT-B-32", "ViT-B-32-quickgelu"),
    *("coca_ViT-B-32", "PE-Core-T-16-384", "ViT-B-16-SigLIP", "EVA02-B-16"),
    *("convnext_tiny", "convnext_base_w", "MobileCLIP-S1", "MobileCLIP2-S0", "MobileCLIP-B"),
    *("ViTamin-S", "swin_base_patch4_window7_224", "vit_relpos_medium_patch16_cls_224"),
    *("ViT-M-32-alt", "vit_medium_patch16_gap_256"),
]


OTHERS = {
    "pytorchcv": Chosen(PYTORCHCV, _pytorchcv, 224),
    "segmentation_models_pytorch": Chosen(
        [
            *(f"{kind}-resnet18" for kind in ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN")),
            *(f"{kind}-resnet18" for kind in ("PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus")),
            *(f"{kind}-resnet18" for kind in ("UPerNet", "Segformer")),
            *(f"Unet-{encoder}" for encoder in ("efficientnet-b0", "mobilenet_v2")),
            *(f"Unet-{encoder}" for encoder in ("timm-regnetx_002", "se_resnet50", "vgg11")),
            *(f"Unet-{encoder}" for encoder in ("resnext50_32x4d", "densenet121", "xception")),
        ],
        _smp,
        128,
    ),
    "efficientnet_pytorch": Chosen([f"efficientnet-b{i}" for i in range(8)], _efficientnet, 224),
    "efficientnet_lite_pytorch": Chosen(
        [f"efficientnet-lite{i}" for i in range(5)], _efficientnet_lite, 224
    ),
    "ultralytics": Chosen(ULTRALYTICS, _ultralytics, 640),
    "open_clip": OpenClip(OPEN_CLIP, _open_clip, 224),
}
"""The zoos by name."""
