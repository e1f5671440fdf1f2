"""Converted models survive a round trip to disk; damaged and foreign files are recognised."""

import errno
import json

import pytest
import safetensors.torch
import timm
import torch
from nets import CIFAR, NETS, images, randomised
from quick import one_in, slow_unless
from safetensors import safe_open
from torchvision import models

import dmnn_convert.io.checkpoint
import dmnn_convert.io.weights
from dmnn_convert import GateConfig, dynamize, load, save
from dmnn_convert.errors import ArgumentError, CheckpointError
from dmnn_convert.nn import conversion_of

SIZE = (3, 32, 32)


def resnet18():
    return randomised(models.resnet18(num_classes=5)).eval()


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def check_round_trip(folder, model, table, fresh=None):
    for controller_weight in (p for n, p in model.named_parameters() if "controller.w3" in n):
        torch.nn.init.normal_(controller_weight)
    loaded, loaded_table = load(folder_of(folder, model), fresh)
    x = images(model, table.input_size)
    assert same(loaded, model)
    assert loaded_table == table
    assert conversion_of(loaded).config == conversion_of(model).config
    assert loaded.training == model.training
    names = [type(m).__name__ for m in model.modules()]
    assert [type(m).__name__ for m in loaded.modules()] == names
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), model.eval()(x))


def folder_of(folder, model, **options):
    save(model, folder, **options)
    return folder


@pytest.mark.parametrize("split", slow_unless("matched".__eq__, ["matched", "exact"]))
@pytest.mark.parametrize(
    "N",
    slow_unless(lambda N: N != 2, [2, 3, {"layer2.*": 2, "*": 0, "stage:3-": 4, "layer3.1": 1}]),
)
def test_round_trip_by_name(tmp_path, N, split):
    model, table = dynamize(resnet18(), N, split=split, input_size=SIZE)
    save(model, tmp_path / "saved", arch="resnet18", num_classes=5)
    loaded, loaded_table = load(tmp_path / "saved")
    assert same(loaded, model)
    assert loaded_table == table
    assert conversion_of(loaded).config == conversion_of(model).config
    x = images(model, SIZE)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


OWN = ("option_a", "bottlenecks", "functional", "root_held", "inline", "chain", "closure")


@pytest.mark.parametrize("split", slow_unless("exact".__eq__, ["matched", "exact"]))
@pytest.mark.parametrize("name", one_in(2, OWN))
def test_round_trip_of_a_network_of_ones_own(tmp_path, name, split):
    net = NETS[name]
    model, table = dynamize(randomised(net.build()), 3, split=split, input_size=net.size)
    check_round_trip(tmp_path, model, table, net.build())


@pytest.mark.slow
def test_round_trip_of_a_timm_model(tmp_path):
    source = randomised(timm.create_model("mobilenetv2_100", num_classes=5))
    model, table = dynamize(source, input_size=SIZE, gate=GateConfig(hidden=8, chained=False))
    save(model, tmp_path, arch="timm:mobilenetv2_100", num_classes=5)
    loaded = load(tmp_path).model
    assert same(loaded, model)
    assert conversion_of(loaded).table == table
    assert conversion_of(loaded).config.gate == GateConfig(hidden=8, chained=False)


@pytest.mark.slow
def test_a_chosen_part_is_converted_again(tmp_path):
    model, table = dynamize(resnet18(), where="layer[34].*", input_size=SIZE)
    save(model, tmp_path, arch="resnet18", num_classes=5)
    loaded, loaded_table = load(tmp_path)
    assert same(loaded, model)
    assert loaded_table.blocks == ("layer3.0", "layer3.1", "layer4.0", "layer4.1")
    assert table == loaded_table


@pytest.mark.slow
@pytest.mark.parametrize("kept", slow_unless(bool, [False, True]))
def test_category_heads_are_kept_on_request(tmp_path, kept):
    model, _ = dynamize(resnet18(), input_size=SIZE, num_categories=7)
    save(model, tmp_path, arch="resnet18", num_classes=5, category_heads=kept)
    loaded, _ = load(tmp_path)
    heads = [k for k in loaded.state_dict() if ".category_head." in k]
    assert bool(heads) is kept
    assert any(".category_head." in k for k in model.state_dict())
    own = model.state_dict()
    assert set(own) - set(loaded.state_dict()) == {
        k for k in own if ".category_head." in k and not kept
    }
    assert all(torch.equal(v, own[k]) for k, v in loaded.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    slow_unless({torch.bfloat16}.__contains__, [torch.float16, torch.bfloat16, torch.float64]),
)
def test_precision_is_kept(tmp_path, dtype):
    model, _ = dynamize(resnet18(), input_size=SIZE)
    model.to(dtype)
    save(model, tmp_path, arch="resnet18", num_classes=5)
    loaded, _ = load(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert same(loaded, model)


@pytest.mark.slow
def test_a_model_of_mixed_precision_keeps_it(tmp_path):
    model, _ = dynamize(resnet18(), input_size=SIZE)
    model.fc.double()
    save(model, tmp_path, arch="resnet18", num_classes=5)
    assert same(load(tmp_path).model, model)


@pytest.mark.parametrize("training", slow_unless(bool, [True, False]))
def test_the_mode_is_kept(tmp_path, training):
    model, _ = dynamize(resnet18().train(training), input_size=SIZE)
    save(model, tmp_path, arch="resnet18", num_classes=5)
    assert load(tmp_path).model.training is training


def test_tied_and_strided_weights_survive(tmp_path):
    source = resnet18()
    model, _ = dynamize(source, input_size=SIZE)
    model.to(memory_format=torch.channels_last)
    model.register_buffer("also_fc", model.fc.weight.detach())
    save(model, tmp_path)
    fresh = resnet18()
    fresh.register_buffer("also_fc", fresh.fc.weight.detach())
    assert same(load(tmp_path, fresh).model, model)


@pytest.mark.slow
def test_the_given_source_is_left_alone(tmp_path):
    model, _ = dynamize(resnet18(), input_size=SIZE)
    save(model, tmp_path)
    fresh = models.resnet18(num_classes=5)
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    load(tmp_path, fresh)
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())


# --- what does not load -----------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "saved"
    model, _ = dynamize(randomised(NETS["chain"].build()), input_size=NETS["chain"].size)
    save(model, folder)
    return folder


def fails(folder, *words, fresh=None, error=CheckpointError):
    with pytest.raises(error) as caught:
        load(folder, fresh or NETS["chain"].build())
    message = str(caught.value)
    for word in (str(folder), *words):
        assert word in message
    return message


FILES = ("config.json", "model.safetensors")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("keep", slow_unless({0, -20}.__contains__, [0, 1, 40, -20]))
def test_truncated_files(saved, file, keep):
    path = saved / file
    path.write_bytes(path.read_bytes()[:keep])
    fails(saved, file, "truncated")


@pytest.mark.parametrize("file", FILES)
def test_missing_files(saved, file):
    (saved / file).unlink()
    fails(saved, file)


def test_a_folder_that_is_none(tmp_path):
    fails(tmp_path / "nothing", "save()")
    file = tmp_path / "file"
    file.write_text("x")
    fails(file)


@pytest.mark.parametrize(
    "content",
    one_in(3, ["[]", "{}", "3", "null", '{"model_type": "bert"}', "<html></html>", "\x00\x01"]),
)
def test_foreign_configs(saved, content):
    (saved / "config.json").write_text(content)
    fails(saved, "config.json")


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    one_in(
        3,
        [
            {"conversion": None},
            {"conversion": []},
            {"conversion": {"N": "two"}},
            {"conversion": {"unknown": 1}},
            {"conversion": {"N": 2, "gate": {"hidden": -1}}},
            {"conversion": {"N": 2, "input_size": 5}},
            {"save_id": None},
        ],
    ),
)
def test_configs_with_other_values(saved, changes):
    edit(saved, **changes)
    fails(saved, "config.json")


def test_a_newer_format_says_so(saved):
    edit(saved, format=99)
    fails(saved, "format 99", "version")


def test_a_config_in_a_foreign_encoding(saved):
    (saved / "config.json").write_bytes(b"\xff\xfe{}")
    fails(saved, "config.json")


def test_foreign_weights(saved):
    safetensors.torch.save_file({"a": torch.zeros(1)}, saved / "model.safetensors")
    fails(saved, "model.safetensors")


def test_files_of_two_saves_do_not_mix(saved, tmp_path):
    other = tmp_path / "other"
    model, _ = dynamize(randomised(NETS["chain"].build()), input_size=NETS["chain"].size)
    save(model, other)
    (saved / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    fails(saved, "another save")


def test_another_architecture_is_named(saved):
    fails(saved, "ResNet", "Sequential", fresh=models.resnet18())


def test_weights_of_other_shapes_name_the_keys(tmp_path):
    model, _ = dynamize(resnet18(), input_size=SIZE)
    save(model, tmp_path)
    fails(tmp_path, "fc.weight", "(5, 512)", "(7, 512)", fresh=models.resnet18(num_classes=7))


@pytest.mark.slow
def test_weights_with_other_keys_name_them(tmp_path):
    source = resnet18()
    source.extra = torch.nn.Linear(2, 2)
    model, _ = dynamize(source, input_size=SIZE)
    save(model, tmp_path)
    fails(tmp_path, "unexpected extra.bias", fresh=resnet18())


def test_a_converted_model_is_no_fresh_source(saved):
    converted, _ = dynamize(NETS["chain"].build(), input_size=NETS["chain"].size)
    fails(saved, "already converted", fresh=converted)


# --- nothing runs -----------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["evil:make", "{file}:make", f"{CIFAR}:resnet20", "os:system"])
def test_a_factory_named_in_a_file_never_runs(saved, tmp_path, arch, monkeypatch):
    file = tmp_path / "evil.py"
    file.write_text("raise SystemExit('it ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    edit(saved, arch=arch.format(file=file))
    with pytest.raises(ArgumentError, match=r"model=\.\.\."):
        load(saved)


def test_without_a_name_the_source_is_asked_for(saved):
    with pytest.raises(ArgumentError, match=r"Sequential yourself.*model=\.\.\."):
        load(saved)


def test_the_files_hold_no_pickle(saved):
    assert {f.name for f in saved.iterdir()} == {*FILES, "flops.json"}
    with safe_open(saved / "model.safetensors", "pt") as file:
        assert list(file.keys())
    json.loads((saved / "config.json").read_text())
    json.loads((saved / "flops.json").read_text())


# --- writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", slow_unless("write_text".__eq__, ["save_file", "write_text"]))
def test_a_failing_write_keeps_the_old_model(saved, step, monkeypatch):
    before = {f.name: f.read_bytes() for f in saved.iterdir()}
    model, _ = dynamize(randomised(NETS["chain"].build()), input_size=NETS["chain"].size)

    def fail(content, path, **options):
        (path if step == "save_file" else content).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    place = {"save_file": dmnn_convert.io.weights, "write_text": dmnn_convert.io.checkpoint}
    monkeypatch.setattr(place[step], step, fail)
    with pytest.raises(CheckpointError, match="No space left"):
        save(model, saved)
    assert {f.name: f.read_bytes() for f in saved.iterdir()} == before
    monkeypatch.undo()
    assert load(saved, NETS["chain"].build())


def test_saving_again_replaces_and_leaves_nothing_behind(saved):
    model, _ = dynamize(randomised(NETS["chain"].build(), seed=5), 3, input_size=(3, 16, 16))
    save(model, saved)
    assert {f.name for f in saved.iterdir()} == {*FILES, "flops.json"}
    assert same(load(saved, NETS["chain"].build()).model, model)


def test_a_folder_that_cannot_be_made(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    model, _ = dynamize(NETS["chain"].build(), input_size=NETS["chain"].size)
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(model, file / "inside")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("wrap", one_in(2, [lambda m: torch.nn.Sequential(m), lambda m: m[2]]))
def test_only_whole_converted_models_are_saved(tmp_path, wrap):
    model, _ = dynamize(NETS["chain"].build(), input_size=NETS["chain"].size)
    with pytest.raises(ArgumentError, match="itself, unwrapped"):
        save(wrap(model), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
