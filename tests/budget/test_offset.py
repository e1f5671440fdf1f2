"""Budgets of gated networks: one offset on all on-margins."""

import copy
import itertools

import pytest
import torch
from quick import slow_unless
from small_nets import NETS, images, seasoned
from torch import nn

import dmnn_convert
from dmnn_convert import ArgumentError, GateConfig, dynamize, prepare, record_paths, set_budget
from dmnn_convert.budget.level import table_of
from dmnn_convert.nn import controllers

LOADER = [images(50, seed) for seed in range(2)]


def fresh(kind, spread=0.0):
    gate = GateConfig(spread=spread, init_rate=0.7)
    return dynamize(seasoned(NETS[kind]()), 4, split="exact", gate=gate, input_size=(3, 8, 8)).model


def gated(kind="basic", spread=0.0):
    """A network whose gates differ from image to image."""
    model = fresh(kind, spread).eval()
    for controller in controllers(model):
        nn.init.normal_(controller.w1.weight)
        nn.init.normal_(controller.w3.weight)
    return model


def gates_of(model):
    with record_paths(model) as paths, torch.no_grad():
        for batch in LOADER:
            model(batch)
    return paths.gates


def ratio_of(model):
    table = table_of(model, "")
    return float(table.network_flops(gates_of(model)).mean()) / table.dense_total


@pytest.mark.parametrize(
    ("kind", "spread"),
    slow_unless(
        lambda kind, spread: (kind == "basic") == (spread > 0),
        itertools.product(["basic", "inverted"], [0.0, 3.0]),
    ),
)
def test_the_mean_flops_meet_the_budget(kind, spread):
    model = gated(kind, spread)
    offsets = [set_budget(model, LOADER, ratio) for ratio in (0.7, 0.85, 0.75)]
    assert offsets[0] < offsets[2] < offsets[1]
    assert 0.73 < ratio_of(model) <= 0.75
    assert offsets[0] == set_budget(model, LOADER, 0.7)  # whatever was set before


def test_the_offset_is_added_to_every_on_margin():
    model = gated()
    offset = set_budget(model, LOADER, 0.6)
    controller, x = controllers(model)[0], torch.randn(5, 32)
    shifted = controller.gate_logits(x).diff(dim=-1)
    controller.offset = None
    torch.testing.assert_close(shifted, controller.gate_logits(x).diff(dim=-1) + offset)


def test_all_on_and_all_off():
    model = gated()
    table = table_of(model, "")
    set_budget(model, LOADER, table.fixed / table.dense_total)
    assert not gates_of(model).any()
    if table.total <= table.dense_total:
        set_budget(model, LOADER, 1.0)
        assert gates_of(model).all()
    matched = dynamize(seasoned(NETS["bottleneck"]()), 2, input_size=(3, 8, 8)).model.eval()
    assert table_of(matched, "").total < table_of(matched, "").dense_total
    set_budget(matched, LOADER, 1.0)
    assert gates_of(matched).all()


def test_it_is_part_of_the_state(tmp_path):
    model = gated()
    set_budget(model, LOADER, 0.7)
    expected = gates_of(model)
    other = gated()
    other.load_state_dict(model.state_dict())
    assert torch.equal(gates_of(other), expected)
    other.load_state_dict(gated().state_dict())  # one that no budget was set for
    assert controllers(other)[0].offset is None
    dmnn_convert.save(model, tmp_path)
    loaded, _ = dmnn_convert.load(tmp_path, NETS["basic"]())
    assert torch.equal(gates_of(loaded), expected)
    assert torch.equal(gates_of(copy.deepcopy(model)), expected)
    assert controllers(copy.deepcopy(model).half())[0].offset.dtype is torch.float32


def test_prepared_models_keep_the_budget():
    model = gated("inverted")
    set_budget(model, LOADER, 0.7)
    prepared = prepare(model, LOADER[0][:1], autotune=False)
    assert torch.equal(gates_of(prepared), gates_of(model))


def test_a_generator_gives_its_images_once():
    model = gated()
    offset = set_budget(model, LOADER, 0.7)
    assert set_budget(model, ((batch, None) for batch in LOADER), 0.7) == offset


def test_what_no_offset_makes_is_refused_and_the_model_stays():
    model = gated()
    set_budget(model, LOADER, 0.7)
    before = controllers(model)[0].offset
    floor = table_of(model, "").fixed / table_of(model, "").dense_total
    with pytest.raises(ArgumentError, match=f"takes {floor:.3f} of the source's FLOPs already"):
        set_budget(model, LOADER, floor - 0.01)
    for ratio in (0, 1.1, True, "half"):
        with pytest.raises(ArgumentError, match="above 0 and at most 1"):
            set_budget(model, LOADER, ratio)
    with pytest.raises(ArgumentError, match="no images"):
        set_budget(model, [], 0.7)
    with pytest.raises(ArgumentError, match="do not follow"), dmnn_convert.force_gates(model, True):
        set_budget(model, LOADER, 0.7)
    with pytest.raises(ArgumentError, match="no gate controllers"):
        set_budget(NETS["basic"](), LOADER, 0.7)
    assert controllers(model)[0].offset is before
    untrained = fresh("basic")
    with pytest.raises(ArgumentError, match="the gates jump from"):
        set_budget(untrained, LOADER, 0.7)
    assert "b1.controller.offset" not in untrained.state_dict()


@pytest.mark.slow
def test_a_prepared_model_is_refused():
    prepared = prepare(gated(), LOADER[0][:1], autotune=False)
    with pytest.raises(ArgumentError):
        set_budget(prepared, LOADER, 0.7)
