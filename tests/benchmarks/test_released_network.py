"""The released network of models/: its figures on the images beside it."""

import sys
from pathlib import Path

import pytest
import torch

import dmnn_convert
from dmnn_convert.io import load_source_checkpoint, zoo

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import budget_curve  # noqa: E402

RIGHT = {0.25: 418, 0.5: 415, 0.75: 431, 1.0: 435}
"""Of 500 test images, what each level answers rightly."""


@pytest.fixture(scope="module")
def model():
    return dmnn_convert.load("resnet20-cifar10-levels").model.eval()


@pytest.fixture(scope="module")
def test_images():
    return budget_curve.batches("test")


def rightly(network, batches):
    with torch.no_grad():
        return sum(int((network(x).argmax(1) == y).sum()) for x, y in batches)


@pytest.mark.slow
def test_levels_answer_as_they_did(model, test_images):
    for level, right in RIGHT.items():
        found = rightly(dmnn_convert.freeze(model, level), test_images)
        assert abs(found - right) <= 2, level  # rounding differs between processors
        with dmnn_convert.at_level(model, level):
            assert abs(rightly(model, test_images) - found) <= 1


@pytest.mark.slow
def test_a_cascade_meets_its_budget(model, test_images):
    held_out = budget_curve.batches("held_out")
    cascade = dmnn_convert.Cascade.fit(model, held_out, levels=(0.25, 0.75), flops_ratio=0.5)
    with dmnn_convert.record_exits(cascade) as exits:
        right = rightly(cascade, test_images)
    assert cascade.fitted.flops_ratio <= 0.5
    asked = float((exits.levels == 1).double().mean())
    assert 0.1 < asked < 0.5  # the .75 level, at .753 of the FLOPs, for those in doubt
    assert right >= RIGHT[0.5] + 5


@pytest.mark.slow
def test_int8_loses_at_most_a_point(model, test_images, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    held_out = budget_curve.batches("held_out")
    how = {"engine": "onnxruntime", "precision": "int8", "calibration": held_out}
    dmnn_convert.deploy(dmnn_convert.freeze(model, 1.0), tmp_path, held_out[0][0][:2], **how)
    run = dmnn_convert.load_deployed(tmp_path, threads=1)
    right = sum(int((run(x.numpy()).argmax(1) == y.numpy()).sum()) for x, y in test_images)
    assert right >= RIGHT[1.0] - 5


STATIC = {
    "resnet20-cifar10-static/0.25": ("resnet20_quarter", 403),
    "resnet20-cifar10-static/0.5": ("resnet20_half", 421),
    "resnet20-cifar10-static/0.75": ("resnet20_three_quarters", 434),
    "resnet20-cifar10-static/1": ("resnet20", 436),
    "resnet56-cifar10-static/0.25": ("resnet56_quarter", 431),
    "resnet56-cifar10-static/0.5": ("resnet56_half", 434),
    "resnet56-cifar10-static/1": ("resnet56", 437),
}
"""Plain networks trained alone: factory, and what it answers rightly of 500 test images."""


@pytest.mark.slow
@pytest.mark.parametrize("name", STATIC)
def test_static_networks_answer_as_they_did(name, test_images):
    factory, right = STATIC[name]
    network = zoo.build(f"{ROOT / 'examples' / 'cifar_resnet.py'}:{factory}")
    load_source_checkpoint(network, ROOT / "models" / f"{name}.safetensors")
    assert abs(rightly(network.eval(), test_images) - right) <= 2  # rounding differs
