"""Names become models, and wrong names become advice."""

import re
import sys
import textwrap
from urllib.error import URLError

import pytest
import torch
from timm.models._hub import has_hf_hub
from torch import nn

from dmnn_convert.errors import ArgumentError, PretrainedError, UnknownArchitectureError
from dmnn_convert.io import zoo

FACTORIES = """
    from torch import nn

    THREE = nn.Linear(2, 3)

    class Net(nn.Linear):
        def __init__(self):
            super().__init__(2, 3)

        @classmethod
        def wide(cls):
            return nn.Linear(2, 30)

    def make_net(num_classes=3, bias=True):
        return nn.Linear(2, num_classes, bias=bias)

    def fixed():
        return nn.Linear(2, 3)

    def needy(width):
        return nn.Linear(2, width)

    def number():
        return 7

    def broken():
        raise RuntimeError("the user's own bug")
"""


@pytest.fixture
def factories(tmp_path):
    file = tmp_path / "factories_of_a_user.py"
    file.write_text(textwrap.dedent(FACTORIES))
    return file


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty cache of weights and downloads that fail."""

    def fail(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", fail)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)


# --- the zoos ---------------------------------------------------------------------------------


def test_builds_a_torchvision_model():
    model = zoo.build("resnet18", num_classes=5)
    assert type(model).__name__ == "ResNet"
    assert model.fc.out_features == 5
    assert zoo.build("resnet18").fc.out_features == 1000


def test_builds_a_timm_model():
    model = zoo.build("timm:mobilenetv2_100", num_classes=5)
    assert model.num_classes == 5
    assert zoo.build("timm:mobilenetv2_100.ra_in1k").num_classes == 1000


def test_builds_a_segmentation_model_without_fetching_its_backbone(no_network):
    model = zoo.build("lraspp_mobilenet_v3_large", num_classes=4)
    assert isinstance(model, nn.Module)


def test_lists_torchvision_then_timm():
    names = zoo.list_architectures()
    first = next(i for i, name in enumerate(names) if name.startswith("timm:"))
    assert "resnet50" in names[:first]
    assert "timm:mobilenetv2_100" in names[first:]
    assert all(name.startswith("timm:") for name in names[first:])
    assert "fasterrcnn_resnet50_fpn" not in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("arch", "known"),
    [
        ("resnet50", True),
        ("timm:mobilenetv2_100", True),
        ("timm:mobilenetv2_100.ra_in1k", True),
        ("timm:mobilenetv2_100.no_such_tag", False),
        ("timm:hf-hub:someone/model", False),
        ("timm:", False),
        ("mobilenetv2_100", False),
        ("torch.nn:Linear", False),
        ("nets.py:fixed", False),
        ("", False),
    ],
)
def test_tells_zoo_names_from_code(arch, known):
    assert zoo.is_zoo_name(arch) is known


@pytest.mark.parametrize(
    ("arch", "advice"),
    [
        ("resnet5O", "Did you mean resnet50"),
        ("ResNet50", "Did you mean resnet50"),
        ("mobilenetv2_100", "Did you mean timm:mobilenetv2_100"),
        ("timm:mobilenetv2_10O", "timm:mobilenetv2_100,"),
        ("timm:mobilenetv2_100.no_such_tag", "timm:mobilenetv2_100"),
        ("no such thing at all", "package.module:factory"),
        ("nets.py", "path/to/file.py:factory"),
        ("", "package.module:factory"),
    ],
)
def test_unknown_names_come_with_close_ones(arch, advice):
    with pytest.raises(UnknownArchitectureError, match=re.escape(advice)) as caught:
        zoo.build(arch)
    assert repr(arch) in str(caught.value)


@pytest.mark.parametrize("num_classes", [0, -1, 2.0, True, "5"])
def test_rejects_odd_class_counts(num_classes):
    with pytest.raises(ArgumentError, match="num_classes"):
        zoo.build("resnet18", num_classes=num_classes)


# --- pretrained weights -----------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["resnet18", "timm:resnet18"])
def test_failed_downloads_say_what_to_do(arch, no_network):
    if arch.startswith("timm:") and not has_hf_hub():
        pytest.skip("this timm cannot use the huggingface_hub that is installed")
    with pytest.raises(PretrainedError, match=r"no route to host.*--checkpoint FILE.*network"):
        zoo.build(arch, pretrained=True)


def test_pretrained_torchvision_weights_have_their_own_classes(no_network):
    with pytest.raises(ArgumentError, match="1000 classes"):
        zoo.build("resnet18", num_classes=10, pretrained=True)
    with pytest.raises(PretrainedError):  # their own number is no contradiction
        zoo.build("resnet18", num_classes=1000, pretrained=True)


def test_loads_pretrained_torchvision_weights(monkeypatch, tmp_path):
    published = zoo.build("resnet18").state_dict()

    def download(url, destination, *args, **kwargs):
        torch.save(published, destination)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", _hub_state_dict)
    model = zoo.build("resnet18", pretrained=True)
    assert torch.equal(model.conv1.weight, published["conv1.weight"])


def _hub_state_dict(weights, *args, **kwargs):
    """Fetch without the check of the file's hash, which made-up weights cannot pass."""
    return torch.hub.load_state_dict_from_url(weights.url, weights_only=True)


def test_a_timm_model_without_weights_is_not_passed_off_as_pretrained():
    with pytest.raises(PretrainedError, match="no weights"):
        zoo.build("timm:resnet200", pretrained=True)


def test_factories_have_no_pretrained_weights(factories):
    with pytest.raises(ArgumentError, match="--checkpoint FILE"):
        zoo.build(f"{factories}:fixed", pretrained=True)


# --- factories --------------------------------------------------------------------------------


def test_builds_from_a_file(factories):
    assert zoo.build(f"{factories}:make_net").out_features == 3
    assert zoo.build(f"{factories}:make_net", num_classes=8).out_features == 8
    assert zoo.build(f"{factories}:Net.wide").out_features == 30


def test_builds_from_a_module(factories, monkeypatch):
    monkeypatch.syspath_prepend(factories.parent)
    try:
        assert zoo.build("factories_of_a_user:make_net", num_classes=8).out_features == 8
    finally:
        sys.modules.pop("factories_of_a_user", None)


def test_a_file_hides_no_module_and_keeps_its_classes(tmp_path):
    file = tmp_path / "torch.py"
    file.write_text("from torch import nn\nclass Net(nn.Module):\n    pass\n")
    assert type(zoo.build(f"{file}:Net")) is type(zoo.build(f"{file}:Net"))
    assert sys.modules["torch"] is torch


@pytest.mark.parametrize(
    ("name", "num_classes", "message"),
    [
        ("fixed", 5, "num_classes= alone"),
        ("needy", None, "no arguments"),
        ("number", None, "returned int"),
        ("THREE", None, "is a Linear"),
        ("make_nett", None, "Did you mean make_net"),
        ("", None, "has no ''"),
    ],
)
def test_unusable_factories(factories, name, num_classes, message):
    with pytest.raises(ArgumentError, match=message):
        zoo.build(f"{factories}:{name}", num_classes=num_classes)


@pytest.mark.parametrize("arch", ["no_such_package.nets:make", ":make", "..nets:make", "a/b:make"])
def test_modules_that_cannot_be_imported(arch):
    with pytest.raises(ArgumentError, match="PYTHONPATH"):
        zoo.build(arch)


def test_a_missing_file(tmp_path):
    with pytest.raises(ArgumentError, match="no such file"):
        zoo.build(f"{tmp_path / 'none.py'}:make")


def test_the_factorys_own_errors_pass_through(factories, tmp_path):
    with pytest.raises(RuntimeError, match="the user's own bug"):
        zoo.build(f"{factories}:broken")
    bad = tmp_path / "bad.py"
    bad.write_text("1 / 0\n")
    before = set(sys.modules)
    with pytest.raises(ZeroDivisionError):
        zoo.build(f"{bad}:make")
    assert set(sys.modules) == before
