"""A user's checkpoint loads whole, or not at all with the reason."""

import argparse
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from torch import nn

from dmnn_convert.errors import CheckpointError
from dmnn_convert.io import load_source_checkpoint, zoo


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
