"""One small real model for each family of timm's and torchvision's, and of our own."""

from typing import NamedTuple

import pytest
import timm
import torch
from nets import Residual, conv_norm
from norms import draw_norms, normal, uniform
from torch import nn
from torchvision import models


class Family(NamedTuple):
    """A model with what is expected of it.

    Attributes:
        name: "name" of timm's, "torchvision:name" or "own:name".
        kinds: how many blocks of each kind are found, in alphabetical order.
        options: given to the builder.
        size: shape of one image.
        converted: how many blocks are converted, if not all that are found.
        quick: whether the quick suite has it, as one of its kind; the slow one has all others.
        double: whether it is so deep that it amplifies the rounding errors of single precision.
    """

    name: str
    kinds: str
    options: dict = {}  # noqa: RUF012  (read only)
    size: tuple[int, ...] = (3, 64, 64)
    converted: int | None = None
    quick: bool = False
    double: bool = False

    @property
    def count(self) -> int:
        """How many blocks are converted."""
        found = sum(int(word) for word in self.kinds.split() if word.isdigit())
        return found if self.converted is None else self.converted


ONE_EACH = (1, 1, 1, 1)
SMALL = {"img_size": 64}


def resnet1d() -> nn.Module:
    """A ResNet of signals: three basic blocks, two of which halve the length."""

    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        body = nn.Sequential(
            *conv_norm(c_in, c_out, 7, dims=1, stride=stride),
            nn.ReLU(),
            *conv_norm(c_out, c_out, 7, dims=1),
        )
        down = None if stride == 1 else conv_norm(c_in, c_out, 1, dims=1, stride=stride)
        return nn.Sequential(Residual(body, down), nn.ReLU())

    blocks = (block(12, 12, 1), block(12, 20, 2), block(20, 28, 2))
    stem = conv_norm(3, 12, 15, dims=1, stride=2)
    return nn.Sequential(stem, nn.ReLU(), *blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten())


OWN = {"resnet1d": resnet1d}


def build(family: Family, seed: int = 0) -> nn.Module:
    """Return the model in evaluation mode, its norms and scales as if it had been trained."""
    torch.manual_seed(seed)
    source, _, name = family.name.rpartition(":")
    if source == "own":
        model = OWN[name]()
    elif source == "torchvision":
        make = models.video.r3d_18 if name == "r3d_18" else models.get_model_builder(name)
        model = make(**family.options)
    else:
        if not timm.is_model(name):
            pytest.skip(f"timm {timm.__version__} has no {name}")
        model = timm.create_model(name, **family.options)
    model = awakened(model, torch.Generator().manual_seed(seed))
    return model.double() if family.double else model


TRAINED = {
    "running_mean": normal(0.1),
    "running_var": uniform(0.5, 1.5),
    "weight": uniform(0.5, 1.5),
    "bias": normal(0.1),
}


def awakened(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Give norms statistics of their own, and scales and gains values; evaluation."""
    draw_norms(model, TRAINED, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _wake(name, parameter, generator)
    return model.eval()


def _wake(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    """Replace what starts at zero or all alike and tiny: layer scales, skip gains, last norms."""
    largest = parameter.abs().max()
    if largest < 1e-3 and not name.endswith("bias"):
        parameter.normal_(0, 0.3, generator=generator)
    elif largest < 2e-2 and (parameter == parameter.flatten()[0]).all():
        parameter.uniform_(0.2, 0.6, generator=generator)


FAMILIES = (
    Family("resnet10t", "basic 4"),
    Family("resnet14t", "bottleneck 4"),
    Family("resnet50_gn", "residual 4", {"layers": ONE_EACH}),
    Family("resnext26ts", "grouped-bottleneck 8"),
    Family("torchvision:wide_resnet50_2", "bottleneck 16"),
    Family("wide_resnet50_2", "bottleneck 4", {"layers": ONE_EACH}),
    Family("seresnet18", "basic 4", {"layers": ONE_EACH}),
    Family("seresnet50", "bottleneck 4", {"layers": ONE_EACH}),
    Family("seresnextaa101d_32x8d", "grouped-bottleneck 4", {"layers": ONE_EACH}),
    Family("ecaresnet26t", "bottleneck 4", {"layers": ONE_EACH}),
    Family("gcresnext26ts", "residual 8"),
    Family("resnetv2_18", "basic 4", {"layers": ONE_EACH}),
    Family("resnetv2_50x1_bit", "residual 16"),
    Family("nf_resnet26", "residual 4", {"depths": ONE_EACH, "channels": (32, 64, 96, 128)}),
    Family("nfnet_l0", "grouped-bottleneck 3 residual 1", {"depths": ONE_EACH}),
    Family("regnetx_002", "grouped-bottleneck 13"),
    Family("regnety_002", "grouped-bottleneck 13"),
    Family("regnetz_005", "grouped-bottleneck 17"),
    Family("torchvision:regnet_y_400mf", "grouped-bottleneck 16"),
    Family("mobilenetv1_100", "depthwise-separable 13"),
    Family("mobilenetv2_035", "depthwise-separable 1 inverted-residual 16"),
    Family("mobilenetv3_small_050", "inverted-residual 11"),
    Family("mobilenetv3_large_075", "depthwise-separable 1 inverted-residual 14"),
    Family(
        "mobilenetv4_conv_small_050",
        "convnext 2 depthwise-separable 2 inverted-residual 8",
    ),
    Family("mnasnet_small", "depthwise-separable 1 inverted-residual 14"),
    Family("efficientnet_b0", "inverted-residual 16"),
    Family("tf_efficientnet_b0", "inverted-residual 16"),
    Family("efficientnet_lite0", "depthwise-separable 1 inverted-residual 15"),
    Family("efficientnet_es", "fused-inverted-residual 4 inverted-residual 11"),
    Family(
        "efficientnetv2_rw_t",
        "fused-inverted-residual 6 inverted-residual 29 residual 2",
        double=True,
    ),
    Family("mixnet_s", "depthwise-separable 1 residual 10"),
    Family("ghostnet_050", "depthwise-separable 5 inverted-residual 9 residual 7"),
    Family("ghostnetv2_100", "depthwise-separable 5 inverted-residual 2 residual 14"),
    Family("lcnet_050", "depthwise-separable 11 inverted-residual 2"),
    Family("tinynet_e", "inverted-residual 10"),
    Family("rexnet_100", "depthwise-separable 1 inverted-residual 15"),
    Family(
        "convnext_atto", "convnext 4", {"depths": ONE_EACH, "dims": (16, 24, 32, 48)}, quick=True
    ),
    Family("convnextv2_atto", "convnext 4", {"depths": ONE_EACH, "dims": (16, 24, 32, 48)}),
    Family("torchvision:convnext_tiny", "convnext 18"),
    Family(
        "coatnet_pico_rw_224",
        "inverted-residual 2 mlp 2",
        {**SMALL, "depths": ONE_EACH, "embed_dim": (32, 32, 32, 64)},
    ),
    Family("maxvit_tiny_rw_224", "inverted-residual 11 mlp 22", size=(3, 224, 224)),
    Family("vit_tiny_patch16_224", "mlp 3", {**SMALL, "depth": 3}),
    Family("deit_tiny_patch16_224", "mlp 2", {**SMALL, "depth": 2}),
    Family(
        "beit_base_patch16_224", "mlp 2", {**SMALL, "depth": 2, "embed_dim": 96, "num_heads": 3}
    ),
    Family("eva02_tiny_patch14_224", "mlp 3", {"img_size": 56, "depth": 3}, (3, 56, 56)),
    *(
        Family(
            name,
            "mlp 2",
            {**SMALL, "depths": (1, 1), "num_heads": (2, 4), "embed_dim": 32, "window_size": 4},
        )
        for name in ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256")
    ),
    Family("mixer_s32_224", "mlp 16", SMALL),
    Family("gmlp_ti16_224", "residual 30", SMALL),
    Family("poolformer_s12", "mlp 12"),
    Family("poolformerv2_s12", "mlp 12"),
    Family("convformer_s18", "inverted-residual 18 mlp 18"),
    Family("caformer_s18", "inverted-residual 6 mlp 18"),
    Family("dla34", "basic 12"),
    Family("dla46_c", "bottleneck 12"),
    Family("dla46x_c", "grouped-bottleneck 12"),
    Family("dla60_res2net", "residual 16"),
    Family("dla60_res2next", "residual 16"),
    Family("hrnet_w18_small", "basic 18 bottleneck 5"),
    Family("cs3darknet_s", "basic 9"),
    Family("cspresnet50", "bottleneck 13"),
    Family("darknet53", "basic 23"),
    Family("res2net50_14w_8s", "residual 4", {"layers": ONE_EACH}),
    Family("res2next50", "residual 4", {"layers": ONE_EACH}),
    Family("repvgg_a0", "residual 17"),
    Family("xception41", "depthwise-separable 3 residual 12"),
    Family("legacy_xception", "convnext 4 depthwise-separable 2 residual 8"),
    Family("ese_vovnet19b_dw", "depthwise-separable 10"),
    Family("inception_resnet_v2", "residual 40", size=(3, 96, 96)),
    Family("inception_next_atto", "residual 12"),
    Family("edgenext_xx_small", "convnext 2", {"depths": (1, 2, 1, 1)}),
    Family("efficientformer_l1", "mlp 15", size=(3, 224, 224)),
    Family("fastvit_t8", "convnext 4 residual 4", {"layers": ONE_EACH}),
    Family("repvit_m0_9", "depthwise-separable 3 mlp 26"),
    Family(
        "tiny_vit_5m_224",
        "depthwise-separable 3 inverted-residual 2",
        size=(3, 224, 224),
        converted=15,  # the windows of its MLPs are known once the size is
    ),
    Family("cait_xxs24_224", "mlp 3", {**SMALL, "depth": 2, "depth_token_only": 1}),
    Family("focalnet_tiny_srf", "mlp 12 residual 12"),
    Family("gcvit_xxtiny", "inverted-residual 11 mlp 12", size=(3, 224, 224)),
    Family("mvitv2_tiny", "mlp 10", SMALL),
    Family("twins_svt_small", "mlp 18", SMALL),
    Family("tnt_s_legacy_patch16_224", "mlp 4", {**SMALL, "depth": 2}, converted=2),
    Family("nextvit_small", "depthwise-separable 20 mlp 20"),
    Family("starnet_s050", "convnext 6"),
    Family(
        "rdnet_tiny",
        "depthwise-separable 7",
        {"num_blocks_list": (1,) * 7, "growth_rates": (16,) * 7, "num_init_features": 16},
    ),
    Family("mambaout_femto", "residual 18"),
    Family("gernet_s", "basic 4 bottleneck 7 inverted-residual 3"),
    Family("visformer_tiny", "grouped-bottleneck 7 mlp 8", SMALL),
    Family("torchvision:r3d_18", "basic 8", size=(3, 4, 32, 32)),
    Family("torchvision:resnext50_32x4d", "grouped-bottleneck 16"),
    Family("torchvision:mobilenet_v3_small", "inverted-residual 11"),
    Family("own:resnet1d", "basic 3", size=(3, 64), quick=True),
)
