"""The preparation of images: as the options say, else as the architecture's weights expect."""

import pytest
import timm
import torch
from PIL import Image
from torchvision import models

from dmnn_convert import ArgumentError
from dmnn_convert.data import DataOptions, preprocessing, test_transform, training_transform
from dmnn_convert.data.transforms import Preprocessing

test_transform.__test__ = False
SMALL = Preprocessing(8, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.fixture(scope="module")
def bicubic():
    model = timm.create_model("mobilenetv3_small_050")
    assert model.pretrained_cfg["interpolation"] == "bicubic"
    return model


def test_the_architectures_own_crop_and_interpolation_hold(bicubic):
    bicubic.pretrained_cfg = {**bicubic.pretrained_cfg, "crop_pct": 0.95}
    how = preprocessing(DataOptions(), bicubic)
    assert (how.side, how.crop_pct, how.interpolation) == (224, 0.95, "bicubic")
    evaluated = test_transform(how).transforms[0]
    assert evaluated.size == int(224 / 0.95)
    assert evaluated.interpolation.value == "bicubic"
    cropped = training_transform(DataOptions(), how).transforms[0]
    assert cropped.interpolation.value == "bicubic"
    padded = training_transform(DataOptions(crop="none"), how).transforms[0]
    assert padded.interpolation.value == "bicubic"


def test_without_any_the_customary_ones_hold():
    how = preprocessing(DataOptions(), models.resnet18())
    assert how == Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875)


def test_small_images_are_kept_whole(bicubic):
    assert preprocessing(DataOptions(input_size=32), bicubic).crop_pct == 1.0
    own = {"input_size": (3, 32, 32), "crop_pct": 0.9}
    bicubic.pretrained_cfg = {**bicubic.pretrained_cfg, **own}
    assert preprocessing(DataOptions(), bicubic).crop_pct == 0.9


def test_options_go_before_the_architecture(bicubic):
    how = preprocessing(DataOptions(input_size=96, mean=(0.1,), std=(0.3,)), bicubic)
    assert how[:3] == (96, (0.1,), (0.3,))
    with pytest.raises(ArgumentError, match="gives 2 numbers, but images have 3 channels"):
        preprocessing(DataOptions(mean=(0.1, 0.2), std=(0.3, 0.3)), bicubic)


@pytest.mark.parametrize("crop", ["pad", "resize"])
@pytest.mark.parametrize("policy", ["rand-m5-n2", "augmix-m3", "v0", "original-mstd0.5", "3a"])
def test_policies_of_timm_augment(policy, crop):
    transform = training_transform(DataOptions(auto_augment=policy, crop=crop), SMALL)
    assert transform(Image.new("RGB", (9, 9), "red")).shape == torch.Size((3, 8, 8))


@pytest.mark.parametrize("crop", ["pad", "resize"])
@pytest.mark.parametrize("policy", ["v0", "rand-m0", "augmix-m10"])
def test_policies_that_keep_no_bits_of_an_image_blacken_it(policy, crop):
    transform = training_transform(DataOptions(auto_augment=policy, crop=crop), SMALL)
    (step,) = (s for s in transform.transforms if hasattr(s, "ops") or hasattr(s, "policy"))
    ops = step.ops if hasattr(step, "ops") else [op for part in step.policy for op in part]
    posterize = [op for op in ops if op.name.startswith("Posterize")]
    (op,) = (op for op in posterize if op.level_fn(op.magnitude, op.hparams) == (0,))
    op.prob, op.magnitude_std = 1.0, 0
    assert op(Image.new("RGB", (9, 9), "red")).getcolors() == [(81, (0, 0, 0))]


@pytest.mark.parametrize("crop", ["pad", "resize"])
@pytest.mark.parametrize("policy", ["wild", "rand-q5", "augmix-z1", "v0-x3", "rand-m1.5", "", "v9"])
def test_policies_that_timm_does_not_know_are_refused(policy, crop):
    with pytest.raises(ArgumentError, match="timm has no such policy"):
        training_transform(DataOptions(auto_augment=policy, crop=crop), SMALL)
