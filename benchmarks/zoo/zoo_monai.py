"""Small forms of MONAI's networks, for volumes and images, as its users build them."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from zoo_monai_counts import HUMAN

Size = tuple[int, ...]

_VOLUME = (1, 32, 32, 32)
_CUBE = (1, 64, 64, 64)
_IMAGE = (1, 128, 128)
_IN_3D = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
_IN_2D = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
_LEVELS = {"channels": (8, 16, 32, 64), "strides": (2, 2, 2)}
_TOKENS = {"hidden_size": 32, "mlp_dim": 64, "num_heads": 2}
_RESNET = {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 3, "widen_factor": 0.25}
_SENET = {"layers": (1, 2, 1, 1), "inplanes": 64, "num_classes": 3}
_DYNUNET = {
    "kernel_size": (3, 3, 3, 3),
    "strides": (1, 2, 2, 2),
    "upsample_kernel_size": (2, 2, 2),
    "filters": (8, 16, 32, 64),
}
_DIFFUSION = {
    "channels": (16, 32, 32),
    "num_res_blocks": 1,
    "attention_levels": (False, False, True),
    "norm_num_groups": 8,
}

MODELS: dict[str, tuple[str, dict[str, Any], Size]] = {
    "resnet10": ("resnet10", _RESNET, _VOLUME),
    "resnet18": ("resnet18", _RESNET, _VOLUME),
    "resnet18-shortcut-A": ("resnet18", {**_RESNET, "shortcut_type": "A"}, _VOLUME),
    "resnet18-2d": ("resnet18", {**_RESNET, "spatial_dims": 2}, _IMAGE),
    "resnet50": ("resnet50", _RESNET, _VOLUME),
    "SEResNet50": ("SEResNet50", {"spatial_dims": 2, "in_channels": 1, **_SENET}, _IMAGE),
    "SEResNet50-3d": ("SEResNet50", {"spatial_dims": 3, "in_channels": 1, **_SENET}, _VOLUME),
    "SEResNext50": ("SEResNext50", {"spatial_dims": 2, "in_channels": 1, **_SENET}, _IMAGE),
    "SENet154": ("SENet154", {"spatial_dims": 2, "in_channels": 1, **_SENET, "groups": 8}, _IMAGE),
    "DenseNet121": ("DenseNet121", _IN_2D, _IMAGE),
    "EfficientNetBN-b0": (
        "EfficientNetBN",
        {"model_name": "efficientnet-b0", "pretrained": False, "in_channels": 1, "num_classes": 3},
        _IMAGE,
    ),
    "EfficientNetBN-b0-3d": (
        "EfficientNetBN",
        {
            "model_name": "efficientnet-b0",
            "pretrained": False,
            "spatial_dims": 3,
            "in_channels": 1,
            "num_classes": 3,
        },
        _CUBE,
    ),
    "TorchVisionFCModel": ("TorchVisionFCModel", {"num_classes": 3}, (3, 224, 224)),
    "SegResNet": ("SegResNet", {}, _VOLUME),
    "SegResNet-2d": ("SegResNet", {"spatial_dims": 2, "dropout_prob": 0.2}, _IMAGE),
    "SegResNet-deconv": ("SegResNet", {"upsample_mode": "deconv", "norm": "batch"}, _VOLUME),
    "SegResNetVAE": ("SegResNetVAE", {"input_image_size": (32, 32, 32), "vae_nz": 8}, _VOLUME),
    "SegResNetDS": ("SegResNetDS", {"init_filters": 8, "dsdepth": 2}, _VOLUME),
    "SegResNetDS2": ("SegResNetDS2", {"init_filters": 8}, _VOLUME),
    "UNet": ("UNet", {**_IN_3D, **_LEVELS}, _VOLUME),
    "UNet-residual": ("UNet", {**_IN_3D, **_LEVELS, "num_res_units": 2}, _VOLUME),
    "UNet-residual-2d": ("UNet", {**_IN_2D, **_LEVELS, "num_res_units": 2}, _IMAGE),
    "UNet-residual-batch": (
        "UNet",
        {**_IN_3D, **_LEVELS, "num_res_units": 3, "norm": "batch", "act": "relu", "dropout": 0.1},
        _VOLUME,
    ),
    "BasicUNet": ("BasicUNet", {"features": (8, 8, 16, 32, 64, 8)}, _VOLUME),
    "BasicUNetPlusPlus": ("BasicUNetPlusPlus", {"features": (8, 8, 16, 32, 64, 8)}, _VOLUME),
    "AttentionUnet": ("AttentionUnet", {**_IN_3D, **_LEVELS}, _VOLUME),
    "FlexibleUNet-resnet18": (
        "FlexibleUNet",
        {"in_channels": 1, "out_channels": 2, "backbone": "resnet18"},
        _IMAGE,
    ),
    "FlexibleUNet-efficientnet-b0": (
        "FlexibleUNet",
        {"in_channels": 1, "out_channels": 2, "backbone": "efficientnet-b0"},
        _IMAGE,
    ),
    "DynUNet": ("DynUNet", {**_IN_3D, **_DYNUNET}, _VOLUME),
    "DynUNet-residual": ("DynUNet", {**_IN_3D, **_DYNUNET, "res_block": True}, _VOLUME),
    "DynUNet-residual-supervised": (
        "DynUNet",
        {**_IN_3D, **_DYNUNET, "res_block": True, "deep_supervision": True},
        _VOLUME,
    ),
    "VNet": ("VNet", {"dropout_prob_up": (0.5, 0.5)}, _VOLUME),
    "UNETR": (
        "UNETR",
        {"in_channels": 1, "out_channels": 2, "img_size": 32, "feature_size": 8, **_TOKENS},
        _VOLUME,
    ),
    "SwinUNETR": (
        "SwinUNETR",
        {"in_channels": 1, "out_channels": 2, "feature_size": 12, "window_size": 4},
        _CUBE,
    ),
    "SwinUNETR-v2-2d": (
        "SwinUNETR",
        {
            "in_channels": 1,
            "out_channels": 2,
            "feature_size": 12,
            "spatial_dims": 2,
            "use_v2": True,
        },
        _IMAGE,
    ),
    "ViT": (
        "ViT",
        {
            "in_channels": 1,
            "img_size": 32,
            "patch_size": 8,
            "num_layers": 3,
            "classification": True,
            **_TOKENS,
        },
        _VOLUME,
    ),
    "ViTAutoEnc": (
        "ViTAutoEnc",
        {"in_channels": 1, "img_size": 32, "patch_size": 4, "num_layers": 3, **_TOKENS},
        _VOLUME,
    ),
    "MedNeXtS": ("MedNeXt", {"init_filters": 8}, _CUBE),
    "MedNeXtS-residual": (
        "MedNeXt",
        {"init_filters": 8, "use_residual_connection": True, "global_resp_norm": True},
        _CUBE,
    ),
    "HighResNet": ("HighResNet", {}, _VOLUME),
    "HoVerNet": ("HoVerNet", {}, (3, 256, 256)),
    "AHNet": ("AHNet", {"layers": (1, 1, 1, 1), "spatial_dims": 3, "psp_block_num": 2}, _CUBE),
    "Restormer": (
        "Restormer",
        {
            "in_channels": 1,
            "out_channels": 1,
            "dim": 16,
            "num_blocks": (1, 1, 1, 2),
            "num_refinement_blocks": 1,
            "heads": (1, 1, 2, 2),
        },
        _IMAGE,
    ),
    "Quicknat": ("Quicknat", {"num_filters": 8, "num_classes": 3}, _IMAGE),
    "DAF3D": ("DAF3D", {"in_channels": 1, "out_channels": 2}, _CUBE),
    "Regressor": (
        "Regressor",
        {"in_shape": _VOLUME, "out_shape": (4,), "channels": (8, 16, 32), "strides": (2, 2, 2)},
        _VOLUME,
    ),
    "Classifier": (
        "Classifier",
        {"in_shape": _VOLUME, "classes": 4, "channels": (8, 16, 32), "strides": (2, 2, 2)},
        _VOLUME,
    ),
    "AutoEncoder": (
        "AutoEncoder",
        {**_IN_3D, "channels": (8, 16, 32), "strides": (2, 2, 2), "num_res_units": 2},
        _VOLUME,
    ),
    "AutoEncoder-inter": (
        "AutoEncoder",
        {
            **_IN_3D,
            "channels": (8, 16, 32),
            "strides": (2, 2, 2),
            "num_res_units": 2,
            "inter_channels": [32, 32],
        },
        _VOLUME,
    ),
    "VarAutoEncoder": (
        "VarAutoEncoder",
        {
            "spatial_dims": 3,
            "in_shape": _VOLUME,
            "out_channels": 1,
            "latent_size": 8,
            "channels": (8, 16, 32),
            "strides": (2, 2, 2),
            "num_res_units": 2,
            "use_mean_at_inference": True,
        },
        _VOLUME,
    ),
    "RegUNet": (
        "RegUNet",
        {"spatial_dims": 3, "in_channels": 1, "num_channel_initial": 8, "depth": 3},
        _VOLUME,
    ),
    "LocalNet": (
        "LocalNet",
        {
            "spatial_dims": 3,
            "in_channels": 1,
            "num_channel_initial": 8,
            "extract_levels": (0, 1, 2, 3),
        },
        _VOLUME,
    ),
    "AutoencoderKL": (
        "AutoencoderKL",
        {"spatial_dims": 2, **_DIFFUSION, "latent_channels": 3},
        _IMAGE,
    ),
    "DiffusionModelUNet": (
        "DiffusionModelUNet",
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, **_DIFFUSION},
        (1, 64, 64),
    ),
    "DiffusionModelUNet-updown": (
        "DiffusionModelUNet",
        {
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 1,
            **_DIFFUSION,
            "resblock_updown": True,
        },
        (1, 64, 64),
    ),
    "PatchDiscriminator": (
        "PatchDiscriminator",
        {"spatial_dims": 2, "channels": 16, "in_channels": 1},
        _IMAGE,
    ),
}
"""Names in the table -> the class or function, what it is given, and the shape of one image."""

_ELSEWHERE = {"Restormer": "monai.networks.nets.restormer"}


class AtOneTime(nn.Module):
    """A diffusion network that reads images alone: at the same time step for each."""

    def __init__(self, network: nn.Module, step: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("step", torch.tensor([step]))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the network makes of the images at its time step."""
        predicted: Tensor = self.network(x, self.step.expand(x.shape[0]))
        return predicted


class Monai:
    """Networks of MONAI in small forms."""

    size_option = ""
    human = staticmethod(HUMAN.get)

    def names(self) -> list[str]:
        """List the models."""
        return list(MODELS)

    def family(self, name: str) -> str:
        """Return the name of the class or function, without numbers."""
        return re.split(r"[-\d]", name)[0]

    def input_size(self, name: str) -> Size:
        """Return the shape that the table has."""
        return MODELS[name][2]

    def is_fixed(self, name: str) -> bool:
        """Tell whether another input size needs another instance."""
        return False

    def part(self, name: str) -> str:
        """Return of networks that need more than images what else they are given."""
        return "checked at one time step" if name.startswith("Diffusion") else ""

    def build(self, name: str, **options: Any) -> nn.Module:
        """Build the model with random weights.

        Raises:
            TypeError: for options that it does not take.
        """
        import importlib

        kind, settings, _ = MODELS[name]
        module = importlib.import_module(_ELSEWHERE.get(kind, "monai.networks.nets"))
        model: nn.Module = getattr(module, kind)(**{**settings, **options})
        return AtOneTime(model, 400) if name.startswith("Diffusion") else model
