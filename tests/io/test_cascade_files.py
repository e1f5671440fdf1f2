"""Cascades survive the disk whole; damaged or foreign files are told apart."""

import errno
import json
import shutil

import pytest
import torch
from quick import one_in, slow_unless
from small_nets import NETS, images, seasoned
from torch import nn

import dmnn_convert.io.weights
from dmnn_convert import ArgumentError, Cascade, CheckpointError, dynamize, freeze, zoo

IMAGES = images(60)


def model_of(kind="basic", **options):
    how = {"split": "exact", "input_size": (3, 8, 8), **options}
    model = dynamize(seasoned(NETS[kind]()), 4, **how).model.eval()
    for parameter in model.parameters():  # nothing that the source alone could give
        nn.init.normal_(parameter, std=0.3)
    return model


def fitted(model, levels=(0.25, 1.0), **options):
    with torch.no_grad():
        labels = freeze(model, 1.0)(IMAGES).argmax(1)
    return Cascade.fit(model, [(IMAGES, labels)], levels=levels, flops_ratio=0.8, **options)


def check_same(loaded, cascade):
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), cascade(IMAGES))
    assert str(loaded) == str(cascade)
    assert not loaded.training


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "order"),
    slow_unless(
        lambda kind, _: kind == "bottleneck",
        [("basic", "source"), ("inverted", "source"), ("bottleneck", "importance")],
    ),
)
def test_levels_of_a_source(tmp_path, kind, order):
    cascade = fitted(model_of(kind, order=order))
    cascade.save(tmp_path)
    loaded = Cascade.load(tmp_path, NETS[kind]())
    check_same(loaded, cascade)
    assert loaded.fitted[1:] == cascade.fitted[1:]
    loaded.save(tmp_path)
    check_same(Cascade.load(tmp_path, NETS[kind]()), cascade)


@pytest.mark.slow
def test_levels_by_stage_and_paths(tmp_path):
    model = model_of()
    path = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0])
    cascade = fitted(model, levels=((0.25, 0.25), path, 1.0))
    cascade.save(tmp_path)
    loaded = Cascade.load(tmp_path, NETS["basic"]())
    check_same(loaded, cascade)
    by_stage, found, whole = loaded.fitted.levels
    assert (by_stage, found.tolist(), whole) == ((0.25, 0.25), path.tolist(), 1.0)


@pytest.mark.slow
def test_levels_of_a_network_of_the_zoo(tmp_path):
    source = zoo.build("resnet18", num_classes=5).eval()
    model = dynamize(source, 2, split="exact", input_size=(3, 8, 8)).model
    labels = torch.zeros(len(IMAGES)).long()
    cascade = Cascade.fit(model, [(IMAGES, labels)], levels=(0.5, 1.0), flops_ratio=2.0)
    cascade.save(tmp_path, "resnet18", num_classes=5)
    check_same(Cascade.load(tmp_path), cascade)


def test_networks_of_the_users_own(tmp_path):
    def pair():
        return [nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), NETS["basic"]().eval()]

    labels = torch.zeros(len(IMAGES)).long()
    cascade = Cascade.fit(pair(), [(IMAGES, labels)], flops_ratio=0.8, confidence="entropy")
    cascade.save(tmp_path)
    loaded = Cascade.load(tmp_path, pair())
    check_same(loaded, cascade)
    assert loaded.fitted.levels is None and loaded.fitted.top1 == cascade.fitted.top1
    with pytest.raises(ArgumentError, match=r"give them: .*\[Sequential, Net\]"):
        Cascade.load(tmp_path)
    with pytest.raises(ArgumentError, match=r"give them: .*\[Sequential, Net\]"):
        Cascade.load(tmp_path, NETS["basic"]())
    with pytest.raises(ArgumentError, match="give 2 networks"):
        Cascade.load(tmp_path, pair()[:1])
    with pytest.raises(CheckpointError, match=r"do not fit.*Network 0: Give Cascade\.load the"):
        Cascade.load(tmp_path, pair()[::-1])
    with pytest.raises(ArgumentError, match="Leave arch out"):
        cascade.save(tmp_path, "resnet18")


def test_a_function_is_given_again(tmp_path):
    def first(logits):
        return logits[:, 0]

    nets = [nn.Sequential(nn.Flatten(), nn.Linear(192, 5)) for _ in range(2)]
    cascade = Cascade([*nets], [float("inf")], confidence=first)
    cascade.save(tmp_path)
    with pytest.raises(ArgumentError, match="a function, which is not saved"):
        Cascade.load(tmp_path, nets)
    check_same(Cascade.load(tmp_path, nets, confidence=first), cascade)


@pytest.mark.slow
def test_half_precision_stays(tmp_path):
    cascade = fitted(model_of()).to(torch.bfloat16)
    cascade.save(tmp_path)
    loaded = Cascade.load(tmp_path, NETS["basic"]())
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    x = IMAGES.to(torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(loaded(x), cascade(x))


@pytest.fixture(scope="module")
def as_saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cascade")
    fitted(model_of()).save(folder)
    return folder


@pytest.fixture
def saved(as_saved, tmp_path):
    """Return a copy of a saved cascade, to be damaged."""
    return shutil.copytree(as_saved, tmp_path / "saved")


def test_a_failing_write_keeps_the_old_cascade(saved, monkeypatch):
    before = {f.name: f.read_bytes() for f in saved.iterdir()}
    assert set(before) == {"cascade.json", "cascade.safetensors"}

    def fail(_, path, **__):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    other = fitted(model_of())
    monkeypatch.setattr(dmnn_convert.io.weights, "save_file", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        other.save(saved)
    assert {f.name: f.read_bytes() for f in saved.iterdir()} == before


DAMAGES = {
    "format": (7, "has format 7"),
    "save_id": ("0" * 16, "belongs to another save"),
    "mean": ("yes", "its mean is 'yes'"),
    "networks": (["Net"], "1 networks and 1 thresholds"),
    "conversion": ({"N": -1}, "describes no conversion"),
    "fitted": ({"levels": [0.25]}, "its levels are"),
    "arch": ("evil.py:net", "would run code of its own"),
    "confidence": ("luck", "choose one of"),
}


@pytest.mark.parametrize("name", one_in(3, DAMAGES))
def test_what_save_never_wrote(saved, name):
    value, words = DAMAGES[name]
    described = json.loads((saved / "cascade.json").read_text())
    (saved / "cascade.json").write_text(json.dumps(described | {name: value}))
    source = None if name == "arch" else NETS["basic"]()
    with pytest.raises((CheckpointError, ArgumentError), match=words):
        Cascade.load(saved, source)


def test_truncated_and_missing_files(saved):
    whole = (saved / "cascade.safetensors").read_bytes()
    (saved / "cascade.safetensors").write_bytes(whole[:-50])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        Cascade.load(saved, NETS["basic"]())
    (saved / "cascade.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        Cascade.load(saved, NETS["basic"]())
    (saved / "cascade.json").unlink()
    with pytest.raises(CheckpointError, match="a directory that save wrote"):
        Cascade.load(saved, NETS["basic"]())


@pytest.mark.slow
def test_the_wrong_source(saved):
    with pytest.raises(CheckpointError, match="do not fit"):
        Cascade.load(saved, NETS["bottleneck"]())
    with pytest.raises(CheckpointError, match="cannot be converted as the source"):
        Cascade.load(saved, nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))
