"""The CIFAR ResNets of the examples: sizes, keys, and published weights where they are at hand."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dmnn_convert.io import load_source_checkpoint, zoo

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = ROOT.parent / "shared" / "checkpoints"
PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018}


def cifar_resnet(depth: int, **options: int) -> nn.Module:
    return zoo.build(f"{ROOT / 'examples' / 'cifar_resnet.py'}:resnet{depth}", **options)


@pytest.mark.parametrize("depth", PARAMETERS)
def test_has_the_published_number_of_parameters(depth):
    model = cifar_resnet(depth)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[depth]


def test_maps_images_to_logits():
    model = cifar_resnet(20, num_classes=7).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def test_shortcut_takes_every_other_pixel_and_pads_evenly():
    shortcut = cifar_resnet(20).layer2[0].shortcut
    x = torch.randn(2, 16, 8, 8)
    out = shortcut(x)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_keys_are_the_customary_ones():
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    pair = lambda i: [f"conv{i}.weight", *(f"bn{i}.{name}" for name in norm)]  # noqa: E731
    blocks = [f"layer{stage}.{i}." for stage in (1, 2, 3) for i in range(3)]
    expected = {*pair(1), "linear.weight", "linear.bias"}
    expected |= {block + key for block in blocks for key in pair(1) + pair(2)}
    assert set(cifar_resnet(20).state_dict()) == expected


@pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="the published checkpoints are not here")
@pytest.mark.parametrize("depth", PARAMETERS)
def test_loads_the_published_checkpoints(depth):
    (file,) = CHECKPOINTS.glob(f"resnet{depth}-*.th")
    published = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    model = cifar_resnet(depth)
    load_source_checkpoint(model, file)
    loaded = model.state_dict()
    counters = {key for key in loaded if key.endswith("num_batches_tracked")}
    names = {key.removeprefix("module."): key for key in published}
    assert set(names) | counters == set(loaded)
    assert all(torch.equal(loaded[name], published[key]) for name, key in names.items())
