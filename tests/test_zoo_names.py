"""Names become models, wrong names become advice, and checkpoints load whole or not at all."""

import argparse
import re
import sys
import textwrap
from collections import OrderedDict
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
from torch import nn

from dmnn_convert import zoo
from dmnn_convert.errors import (
    ArgumentError,
    CheckpointError,
    PretrainedError,
    UnknownArchitectureError,
)

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
    file = tmp_path / "nets.py"
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
        assert zoo.build("nets:make_net", num_classes=8).out_features == 8
    finally:
        sys.modules.pop("nets", None)


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


# --- checkpoints ------------------------------------------------------------------------------


def small(classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        OrderedDict(conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), head=nn.Linear(4, classes))
    )


def same(model, state):
    own = model.state_dict()
    return list(own) == list(state) and all(torch.equal(own[key], state[key]) for key in own)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {}},
        lambda state: {"model_state_dict": state},
        lambda state: {"state_dict_ema": state},
        lambda state: prefixed(state, "module."),
        lambda state: {"state_dict": prefixed(state, "module._orig_mod.")},
        lambda state: prefixed(state, "_orig_mod.module."),
    ],
)
def test_loads_the_usual_layouts(tmp_path, wrap):
    file = tmp_path / "weights.pth"
    source = small(seed=1).state_dict()
    torch.save(wrap(source), file)
    model = small()
    assert load_source_checkpoint(model, file) is None
    assert same(model, source)


def test_loads_safetensors(tmp_path):
    file = tmp_path / "weights.safetensors"
    source = small(seed=1).state_dict()
    safetensors.torch.save_file(prefixed(source, "module."), file)
    model = small()
    load_source_checkpoint(model, str(file))
    assert same(model, source)


def test_loads_norms_that_counted_no_batches(tmp_path):
    source = small(seed=1).state_dict()
    file = tmp_path / "old.pth"
    torch.save({k: v for k, v in source.items() if "num_batches" not in k}, file)
    model = small()
    load_source_checkpoint(model, file)
    assert same(model, source)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_modules_find_the_version_of_their_format(tmp_path, suffix):
    file = tmp_path / f"weights.{suffix}"
    source = zoo.build("mnasnet0_5", num_classes=2)
    if suffix == "pth":
        torch.save(nn.DataParallel(source).state_dict(), file)
    else:
        safetensors.torch.save_file(source.state_dict(), file)
    model = zoo.build("mnasnet0_5", num_classes=2)
    load_source_checkpoint(model, file)
    assert same(model, source.state_dict())


def test_a_submodule_that_is_called_module_keeps_its_name(tmp_path):
    class Outer(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.module = small(seed=seed)

    file = tmp_path / "weights.pth"
    source = Outer(1).state_dict()
    for wrapped in (source, prefixed(source, "module.")):
        torch.save(wrapped, file)
        model = Outer(0)
        load_source_checkpoint(model, file)
        assert same(model, source)


def rejected(model, file, *words):
    """Check that the file is refused with these words, and leaves no trace; return the message."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_source_checkpoint(model, file)
    message = str(caught.value)
    for word in (str(file), *words):
        assert word in message
    assert "weights_only" not in message
    assert same(model, before)
    return message


def test_another_number_of_classes_names_the_option(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(small(classes=10, seed=1).state_dict(), file)
    words = "head.weight: file (10, 4), model (3, 4)", "head.bias: file (10,)", "--num-classes 10"
    rejected(small(), file, *words)


def test_another_architecture_names_five_keys_of_each_sort(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({f"other{i}": torch.zeros(1) for i in range(8)}, file)
    message = rejected(small(), file, "missing conv.weight", "unexpected other0", "and 3 more")
    assert "--arch" in message
    assert "other4" in message
    assert "other5" not in message


def test_one_missing_key_beside_another_shape(tmp_path):
    file = tmp_path / "weights.pth"
    state = small(classes=10, seed=1).state_dict()
    del state["conv.bias"]
    torch.save(state, file)
    message = rejected(small(), file, "missing conv.bias", "head.weight: file (10, 4)")
    assert "--num-classes" not in message


def test_a_scalar_in_place_of_a_vector(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({**small(seed=1).state_dict(), "head.bias": torch.tensor(1.0)}, file)
    rejected(small(), file, "head.bias: file (), model (3,)")


def test_weights_that_are_no_tensors(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({**small(seed=1).state_dict(), "head.bias": [1.0, 2.0, 3.0]}, file)
    rejected(small(), file, "head.bias")


def test_weights_that_are_there_twice(tmp_path):
    file = tmp_path / "weights.pth"
    state = small(seed=1).state_dict()
    torch.save({**state, **prefixed(state, "module.")}, file)
    rejected(small(), file, "twice")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"net": {"a": torch.zeros(1)}, "epoch": 3}, ("the keys net, epoch", "model_state_dict")),
        ([torch.zeros(1)], ("holds a list",)),
        (torch.zeros(1), ("holds a Tensor",)),
        ({}, ("no state dict",)),
        ({"state_dict": {}}, ("no state dict",)),
        ({1: torch.zeros(1)}, ("no state dict",)),
        ({"state_dict": {}, "args": argparse.Namespace()}, ("argparse.Namespace", "run code")),
        (nn.Linear(2, 2), ("Python objects", "state_dict()")),
    ],
)
def test_files_without_a_state_dict(tmp_path, content, words):
    file = tmp_path / "weights.pth"
    torch.save(content, file)
    rejected(small(), file, *words)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.pth", b"", "empty"),
        ("a.safetensors", b"", "empty"),
        ("a.pth", b"<!doctype html><html></html>", "web page"),
        ("a.safetensors", b"<!doctype html><html></html>", "safetensors"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "Keras"),
        ("a.pth", b"\x80\x02}q\x00", "pickle"),
        ("a.pth", b"hello world", "not a file that torch.save wrote"),
    ],
)
def test_foreign_files(tmp_path, name, content, what):
    file = tmp_path / name
    file.write_bytes(content)
    rejected(small(), file, what)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_truncated_files(tmp_path, suffix):
    file = tmp_path / f"weights.{suffix}"
    state = small(seed=1).state_dict()
    if suffix == "pth":
        torch.save(state, file)
    else:
        safetensors.torch.save_file(state, file)
    file.write_bytes(file.read_bytes()[:-100])
    rejected(small(), file, "truncated")


def test_safetensors_under_another_suffix(tmp_path):
    file = tmp_path / "weights.pth"
    safetensors.torch.save_file(small(seed=1).state_dict(), file)
    rejected(small(), file, "rename it to .safetensors")


def test_no_file_at_all(tmp_path):
    rejected(small(), tmp_path, "a folder")
    rejected(small(), tmp_path / "none.pth", "no such file")
