"""Targets that a network cannot reach, and factories that bring weights."""

from pathlib import Path

import pytest
import torch
from finetune_data import NET, image_folders
from small_nets import IMAGE, basic_net, inverted_net
from tiny_net import tiny

from dmnn_convert import ArgumentError, dynamize, force_gates, record_paths
from dmnn_convert.finetune import Recipe, build_source, finetune
from dmnn_convert.finetune.floor import check_target, floor_of
from dmnn_convert.finetune.network import Networks
from dmnn_convert.finetune.saved_conversion import resolved

TESTS = str(Path(__file__).parent)


def networks_of(source, **options):
    model, table = dynamize(source, 2, input_size=IMAGE, **options)
    return Networks(model, table, source, None, source)


@pytest.mark.parametrize("net", [basic_net, inverted_net])
def test_the_floor_is_what_runs_with_all_gates_off(net):
    networks = networks_of(net())
    with force_gates(networks.model.eval(), False), record_paths(networks.model) as paths:
        networks.model(torch.randn(2, *IMAGE))
    ratio = float(paths.network_flops_ratio())
    assert floor_of(networks.model, networks.table) == pytest.approx(ratio, abs=1e-6)


def test_a_target_below_the_floor_is_refused_with_the_reasons():
    networks = networks_of(inverted_net(), where=["b2"])
    floor = floor_of(networks.model, networks.table)
    check_target(floor + 0.01, networks)
    with pytest.raises(ArgumentError, match=f"at least {floor:.2f} of its FLOPs") as refused:
        check_target(floor - 0.01, networks)
    said = str(refused.value)
    assert "1 of 2 blocks stay dense, because not among the blocks to convert (1)" in said
    assert "1 blocks have no shortcut" in said
    assert f"--target {floor + 0.005:.2f}" in said


def test_a_run_refuses_before_anything_is_trained(tmp_path):
    root = image_folders(tmp_path / "images", train=3, test=2)
    recipe = Recipe(
        arch=NET,
        data=str(root),
        weights="random",
        input_size=8,
        batch_size=6,
        workers=0,
        device="cpu",
        target=0.01,
        output=str(tmp_path / "run"),
    )
    with pytest.raises(ArgumentError, match=r"target=0\.01"):
        finetune(recipe)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_factory_that_brings_weights_counts_as_trained(tmp_path):
    weights = tmp_path / "w.pt"
    file = tmp_path / "mine.py"
    file.write_text(
        "import sys, torch\n"
        f"sys.path.insert(0, {TESTS!r})\n"
        "from tiny_net import tiny\n"
        "def plain(): return tiny()\n"
        "def trained():\n"
        "    net = tiny()\n"
        f"    net.load_state_dict(torch.load({str(weights)!r}, weights_only=True))\n"
        "    return net\n"
    )
    torch.save(tiny().state_dict(), weights)
    state = torch.get_rng_state()
    own = resolved(Recipe(arch=f"{file}:trained"))
    assert torch.equal(torch.get_rng_state(), state)
    assert own.weights == "own"
    assert own.trained
    assert own.alpha == 0.5
    source, new_classifier = build_source(own)
    assert not new_classifier
    assert torch.equal(source[0].weight, torch.load(weights, weights_only=True)["0.weight"])
    assert not resolved(Recipe(arch=f"{file}:plain")).trained
    assert not resolved(Recipe(arch=f"{file}:trained", weights="random")).trained
