"""Curves: every policy over FLOPs and time, chosen and measured on different images."""

import csv

import pytest
import torch
from small_nets import NETS, images, seasoned
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dmnn_convert
from dmnn_convert import ArgumentError, Curve, CurveRow, GateConfig, curve, dynamize, freeze
from dmnn_convert.budget.level import table_of
from dmnn_convert.nn import controllers
from dmnn_convert.report.curves import _no_better


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    how = {"split": "exact", "input_size": (3, 8, 8), "gate": GateConfig(init_rate=0.7)}
    model = dynamize(seasoned(NETS["basic"]()), 4, **how).model.eval()
    for controller in controllers(model):
        nn.init.normal_(controller.w1.weight)
        nn.init.normal_(controller.w3.weight)
    with torch.no_grad():  # so that all classes are answered
        model.fc.bias -= freeze(model, 1.0)(images(121)).mean(0)
    return model


@pytest.fixture(scope="module")
def loader(network):
    x = images(121)
    with torch.no_grad():
        labels = freeze(network, 1.0)(x).argmax(1)
    return DataLoader(TensorDataset(x, labels), 25)


@pytest.fixture(scope="module")
def found(network, loader, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DMNN_CONVERT_CACHE", str(tmp_path_factory.mktemp("cache") / "a.json"))
        return curve(network, loader, static=freeze(network, 0.5), flops_ratios=(0.6, 0.7, 0.9))


def of(found, policy):
    return [row for row in found.rows if row.policy == policy]


def second_half(loader):
    x, labels = (torch.cat(parts)[1::2] for parts in zip(*loader, strict=True))
    return x, labels


@pytest.mark.slow
def test_levels_are_measured_on_the_images_that_chose_nothing(found, network, loader):
    x, labels = second_half(loader)
    table = table_of(network, "")
    for row, level in zip(of(found, "level"), (0.25, 0.5, 0.75, 1.0), strict=True):
        with torch.no_grad():
            right = (freeze(network, level)(x).argmax(1) == labels).double().mean()
        path = dmnn_convert.level_path(network, level)[None]
        macs = float(table.network_flops(path)) - table.controllers
        assert (row.name, row.top1) == (f"{level:g}", pytest.approx(100 * float(right)))
        assert row.flops_ratio == pytest.approx(macs / table.dense_total)
    assert of(found, "level")[-1].top1 == 100
    static, half = of(found, "static")[0], of(found, "level")[1]
    assert (static.flops_ratio, static.top1) == (half.flops_ratio, half.top1)


@pytest.mark.slow
def test_cascades_and_gates_meet_their_budgets(found, network, loader):
    cascades, gates = of(found, "cascade"), of(found, "gates")
    assert 1 <= len(cascades) <= 3 and all("→" in row.name for row in cascades)
    # They are met on the other half of the images, so that they may be missed by a little here.
    assert [row.flops_ratio for row in gates] == pytest.approx([0.6, 0.7, 0.9], abs=0.05)
    assert cascades[0].flops_ratio <= 0.65 and cascades[-1].flops_ratio <= 0.95
    assert all(row.milliseconds > 0 for row in found.rows)
    assert controllers(network)[0].offset is None


def test_text_csv_and_picture(found, tmp_path):
    lines = str(found).splitlines()
    assert lines[0].split() == ["policy", "of", "FLOPs", "top-1", "%", "ms", "an", "image"]
    assert len(lines) == 1 + len(found.rows) + len(found.notes)
    found.to_csv(tmp_path / "c.csv")
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["policy"] for row in rows] == [row.policy for row in found.rows]
    assert [float(row["top1"]) for row in rows] == [row.top1 for row in found.rows]
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cascade_that_is_no_better_than_a_level_is_told_of():
    levels = [CurveRow("level", "0.5", 0.4, 70.0, 1.0), CurveRow("level", "1", 0.8, 80.0, 2.0)]
    better = CurveRow("cascade", "0.5 → 1", 0.6, 75.1, 1.5)
    worse = CurveRow("cascade", "0.5 → 1", 0.6, 74.9, 1.5)
    below, above = CurveRow("cascade", "a", 0.3, 1.0, 1.0), CurveRow("cascade", "a", 0.9, 80.0, 1.0)
    assert list(_no_better([*levels, better, below])) == []
    (note,) = _no_better([*levels, worse])
    assert "74.90 % at 0.600" in note and "75.00 %" in note
    assert len(list(_no_better([*levels, above]))) == 1
    assert str(Curve((worse,), (note,))).endswith(note)


def test_levels_of_a_trained_network_are_those_that_it_keeps(network, loader):
    import copy

    model = copy.deepcopy(network)
    path = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0])
    batches = [x for x, _ in loader]
    dmnn_convert.estimate_levels(model, batches, [path, 0.75, 1.0])
    rows = curve(model, loader, ("level",)).rows
    assert [row.name for row in rows] == ["1-2 of 4", "0.75", "1"]


def test_budgets_that_cannot_be_met_are_told_of(loader):
    model = dynamize(seasoned(NETS["basic"]()), 2, split="exact", input_size=(3, 8, 8)).model.eval()
    found = curve(model, loader, ("cascade", "gates"), flops_ratios=(0.1, 0.7))
    assert any(note.startswith("cascade: no row for 0.1: the cheapest") for note in found.notes)
    assert any(note.startswith("gates: no row for flops_ratio=0.1") for note in found.notes)
    assert not of(found, "gates")  # untrained ones jump over every budget


@pytest.mark.slow
def test_bad_input(network, loader):
    with pytest.raises(ArgumentError, match="choose among"):
        curve(network, loader, ("levels",))
    with pytest.raises(ArgumentError, match="with labels"):
        curve(network, [x for x, _ in loader])
    shuffled = DataLoader(loader.dataset, 25, shuffle=True)
    with pytest.raises(ArgumentError, match="in another order each time"):
        curve(network, shuffled, ("gates",))
    with pytest.raises(ArgumentError, match="one image alone"):
        curve(network, [(images(1), torch.zeros(1).long())])
