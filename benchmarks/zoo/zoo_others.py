"""Zoos that pip installs, some of the networks of each: one or two of a family."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn


class Chosen:
    """Some networks of a zoo, all for images of one size.

    Args:
        models: their names, each with the blocks that a human counts; None where nobody has.
        build: builds the network of a name, with random weights.
        side: of the images, in pixels.
    """

    size_option = ""

    def __init__(
        self, models: Mapping[str, int | None], build: Callable[[str], nn.Module], side: int
    ) -> None:
        self.models, self._build, self.side = models, build, side

    def names(self) -> list[str]:
        """List the models."""
        return list(self.models)

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

    def human(self, name: str) -> int | None:
        """Return how many blocks a human counts; None for a model that nobody has counted."""
        return self.models.get(name)

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


PYTORCHCV = {
    "resnet18_wd4": 8,
    "preresnet18_wd4": 8,
    "resnext14_16x4d": 4,
    "seresnet18": 8,
    "sepreresnet18": 8,
    "resnesta18": 8,
    "ibn_resnet50": 16,
    "airnet50_1x64d_r2": 16,
    "bam_resnet18": 8,
    "cbam_resnet18": 8,
    "sknet50": 16,
    "scnet50": 16,
    "regnetx002": 13,
    "regnety002": 13,
    "diaresnet18": 8,
    "sharesnet18": 8,
    "dla34": 12,
    "hrnet_w18_small_v1": 23,
    "squeezeresnet_v1_0": 4,
    "sqnxt23_w1": 21,
    "shufflenet_g3_wd4": 16,
    "shufflenetv2_wd2": 19,  # its halves are joined, not added, and are such pairs
    "menet108_8x1_g3": 16,
    "mobilenet_wd4": 13,
    "mobilenetv2_wd4": 17,
    "mobilenetv3_small_w7d20": 11,
    "igcv3_wd4": 32,
    "ghostnet": 16,
    "mnasnet_small": 15,
    "proxylessnas_mobile": 20,
    "fbnet_cb": 21,
    "efficientnet_b0": 16,
    "mixnet_s": 16,
    "linknet_cityscapes": 8,
    "tresnet_m": 21,
    "darknet_tiny": 0,
}

# Of C2f, C3, C3k2 and their like, the bottlenecks that add their input; an MLP for each attention.
# Since YOLOv10 a head has two depthwise pairs for each of three levels, v10's and 26's twice that.
ULTRALYTICS = {
    "yolov3-tiny": 0,
    "yolov3": 23,
    "yolov5n": 7,
    "yolov6n": 0,
    "yolov8n": 6,
    "yolov9t": 42,  # six for each RepNCSPELAN4
    "yolov9c": 16,
    # A CIB or two, too, and the depthwise convolution of two SCDown with what follows.
    **{"yolov10n": 22, "yolov10s": 22},
    "yolo11n": 18,
    "yolo11m": 23,
    "yolo12n": 24,
    "yolo26n": 28,  # with the pooling that adds its input
    "yolov8n-cls": 6,
    "yolov8-cls-resnet50": 16,
    **{"yolov8n-seg": 6, "yolov8n-pose": 6, "yolov8n-obb": 6},
    "yolo11n-cls": 7,
    **{"yolo11n-seg": 18, "yolo11n-pose": 18},
    "yolo12n-cls": 10,
    "yolo26n-cls": 7,
    "yolo26n-seg": 28,
    "yolo26n-sem": 12,
    "yolov8n-ghost": 10,  # those of the neck, too: all add their input
    "yolov8n-p2": 6,
    "yolov8n-p6": 7,
    # Two HG blocks or a ResNet-50, an MLP of the encoder, four RepC3, six MLPs of the decoder.
    **{"rtdetr-l": 13, "rtdetr-resnet50": 27},
}

OPEN_CLIP = {
    **{"RN50": 16, "RN50-quickgelu": 16, "convnext_tiny": 18, "convnext_base_w": 36},
    **dict.fromkeys(("ViT-S-32", "ViT-S-16-alt", "ViT-M-32-alt"), 12),
    **dict.fromkeys(("ViT-B-32", "ViT-B-32-quickgelu", "coca_ViT-B-32"), 12),
    **dict.fromkeys(("EVA02-B-16", "MobileCLIP-B"), 12),
    **dict.fromkeys(("vit_relpos_medium_patch16_cls_224", "vit_medium_patch16_gap_256"), 12),
    **{"PE-Core-T-16-384": 13, "ViT-B-16-SigLIP": 13},  # with the MLP of the pooling
    # Two for each RepMixer block, an MLP for each attention, the convolution that tells positions,
    # and four depthwise pairs: the stem's and three that halve the image.
    **{"MobileCLIP-S1": 81, "MobileCLIP2-S0": 43},
    "ViTamin-S": 20,  # six inverted residuals
    "swin_base_patch4_window7_224": 24,
}

SMP = {
    **{f"{kind}-resnet18": 8 for kind in ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN")},
    **{f"{kind}-resnet18": 8 for kind in ("PAN", "DeepLabV3", "UPerNet", "Segformer")},
    "PSPNet-resnet18": 4,  # it reads no deeper
    "DeepLabV3Plus-resnet18": 13,  # with five separable convolutions
    "Unet-efficientnet-b0": 16,
    "Unet-mobilenet_v2": 17,
    "Unet-timm-regnetx_002": 13,
    "Unet-se_resnet50": 16,
    "Unet-vgg11": 0,
    "Unet-resnext50_32x4d": 16,
    "Unet-densenet121": 0,
    "Unet-xception": 14,  # with the two separable convolutions after its blocks
}

OTHERS = {
    "pytorchcv": Chosen(PYTORCHCV, _pytorchcv, 224),
    "segmentation_models_pytorch": Chosen(SMP, _smp, 128),
    "efficientnet_pytorch": Chosen(
        {f"efficientnet-b{i}": count for i, count in enumerate((16, 23, 23, 26, 32, 39, 45, 55))},
        _efficientnet,
        224,
    ),
    "efficientnet_lite_pytorch": Chosen(
        {f"efficientnet-lite{i}": count for i, count in enumerate((16, 21, 21, 24, 30))},
        _efficientnet_lite,
        224,
    ),
    "ultralytics": Chosen(ULTRALYTICS, _ultralytics, 640),
    "open_clip": OpenClip(OPEN_CLIP, _open_clip, 224),
}
"""The zoos by name."""
