"""mmpretrain's classifiers, by the names of `mmpretrain.get_model`: one or two of a family."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from zoo_others import Chosen

HUMAN = {
    "resnet18_8xb32_in1k": 8,
    "resnetv1d50_8xb32_in1k": 16,
    "resnext50-32x4d_8xb32_in1k": 16,
    "seresnet50_8xb32_in1k": 16,
    "res2net50-w14-s8_3rdparty_8xb32_in1k": 16,
    "regnetx-400mf_8xb128_in1k": 22,
    "mobilenet-v2_8xb32_in1k": 17,
    "mobilenet-v3-small-050_3rdparty_in1k": 11,
    "efficientnet-b0_3rdparty_8xb32_in1k": 16,
    "efficientnetv2-b0_3rdparty_in1k": 20,  # two fused ones have no shortcut
    "convnext-v2-atto_3rdparty-fcmae_in1k": 12,
    "repvgg-a0_8xb32_in1k": 17,  # whose shortcut is a norm
    # Of its pairs, 17 depthwise halves and 18 pointwise ones have such a shortcut.
    "mobileone-s0_8xb32_in1k": 35,
    "hrnet-w18_3rdparty_8xb32_in1k": 112,  # with the four of the neck
    "van-tiny_3rdparty_in1k": 26,
    "hornet-tiny_3rdparty_in1k": 50,
    "poolformer-s12_3rdparty_32xb128_in1k": 12,
    "edgenext-xxsmall_3rdparty_in1k": 12,  # three have self-attention inside
    "efficientformer-l1_3rdparty_8xb128_in1k": 15,
    "cspdarknet50_3rdparty_8xb32_in1k": 23,
    "deit-tiny-distilled_3rdparty_in1k": 12,
    "t2t-vit-t-14_8xb64_in1k": 16,  # with the MLPs of the two layers that make the tokens
    "tnt-small-p16_3rdparty_in1k": 24,  # an MLP for the patch, one for the pixels in it
    "swin-tiny_16xb64_in1k": 12,
    "mvitv2-tiny_3rdparty_in1k": 10,
    "davit-tiny_3rdparty_in1k": 36,  # an MLP, and two convolutions that tell positions
    "levit-128s_3rdparty_in1k": 11,
    "mlp-mixer-base-p16_3rdparty_64xb64_in1k": 24,
    # A bottleneck, another one that reads the tokens, too, and an MLP; the first has two of these.
    "conformer-tiny-p16_3rdparty_in1k": 35,
}

OPTIONS: dict[str, dict[str, Any]] = {
    # The head for distillation raises an error in training.
    "levit-128s_3rdparty_in1k": {"head": {"distillation": False}},
}
"""What a network is given besides its name."""


def _mmpretrain(name: str) -> nn.Module:
    from mmpretrain import get_model

    model: nn.Module = get_model(name, **OPTIONS.get(name, {}))
    return model


class Mmpretrain(Chosen):
    """mmpretrain's networks, whose names have digits in front of their end."""

    def family(self, name: str) -> str:
        """Return the start of the name without the number at its end."""
        return re.split(r"[-_]", name)[0].rstrip("0123456789")


MMPRETRAIN = Mmpretrain(HUMAN, _mmpretrain, 224)
