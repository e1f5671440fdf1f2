"""The CIFAR-10 benchmark: its rows, their resumption, and its report."""

import argparse
import dataclasses
import functools

import cifar10
import cifar10_report
import pytest
import runs
import torch
from quick import one_in

from dmnn_convert import find_blocks
from dmnn_convert.finetune import Interrupted
from dmnn_convert.io import load_source_checkpoint, zoo


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for depth in (20, 32, 44, 56):
        source = zoo.build(f"{cifar10.FACTORIES}:resnet{depth}")
        torch.save(source.state_dict(), folder / f"resnet{depth}-0.th")
    return folder


@functools.cache
def blocks_of(arch):
    return find_blocks(zoo.build(arch))


@pytest.fixture
def options(tmp_path, checkpoints):
    return argparse.Namespace(
        data=tmp_path / "data",
        checkpoints=checkpoints,
        runs=tmp_path / "runs",
        csv=tmp_path / "results.csv",
        epochs=3,
        workers=0,
        again=False,
    )


def row(name, top1=90.0, **changes):
    values = dict(name=name, model="resnet56", N=2, split="matched", target=0.5, seed=0)
    values |= dict(
        epochs=3, top1=top1, network_flops_ratio=0.5, gated_flops_ratio=0.49, minutes=1.0
    )
    return cifar10.Row(**{**values, "command": "python", **changes})


@pytest.mark.parametrize("name", one_in(6, cifar10.ROWS))
def test_every_row_has_a_recipe(options, name):
    tuned = options.runs / "dense-56-3-epochs" / "final" / "model.safetensors"
    tuned.parent.mkdir(parents=True)
    tuned.touch()
    factory, recipe = cifar10.recipe_for(name, options)
    assert blocks_of(recipe.arch)
    assert recipe.epochs == 3
    assert (recipe.alpha > 0) == name.endswith("-distill")
    assert recipe.dense == (name.startswith(("dense", "static")) or name == "scratch-29-dense")
    assert (recipe.weights == "random") == factory.startswith("bottleneck")
    assert (recipe.checkpoint == str(tuned)) == ("-adapted" in name)


def test_a_row_that_goes_on_from_another_says_which_is_missing(options):
    with pytest.raises(SystemExit, match="--only dense-56 first"):
        cifar10.recipe_for("dmnn-56-r0.5-adapted", options)


@pytest.mark.parametrize("name", ["dmnn-56-r0.5-equal", "dmnn-56-r0.5-paper"])
def test_rows_to_compare_with_start_with_equal_sub_blocks(options, name):
    _, recipe = cifar10.recipe_for(name, options)
    assert (recipe.order, recipe.certainty, recipe.start_rate) == ("source", 0, 0.9)
    _, recipe = cifar10.recipe_for("dmnn-56-r0.5", options)
    assert (recipe.order, recipe.start_rate) == ("importance", 0.5)


def test_the_sliced_network_keeps_the_larger_half(options):
    half = zoo.build(f"{cifar10.FACTORIES}:resnet56_half")
    checkpoint = cifar10.checkpoint_of("resnet56", options)
    load_source_checkpoint(
        half, cifar10.sliced("resnet56", "resnet56_half", 0.5, checkpoint, options.runs)
    )
    source = zoo.build(f"{cifar10.FACTORIES}:resnet56")
    load_source_checkpoint(source, options.checkpoints / "resnet56-0.th")
    ours, theirs = half.layer2[1], source.layer2[1]
    size = theirs.conv2.weight.detach().square().sum((0, 2, 3))  # new norms have a scale of one
    kept = sorted(range(32), key=lambda c: -float(size[c]))[:16]
    assert torch.equal(ours.conv1.weight, theirs.conv1.weight[sorted(kept)])
    assert torch.equal(ours.conv2.weight, theirs.conv2.weight[:, sorted(kept)])
    assert torch.equal(half.linear.weight, source.linear.weight)


def test_rows_are_kept_in_order_and_replaced_by_name(options):
    for one in (row("dmnn-56-r0.5"), row("renamed"), row("dense-56"), row("dmnn-56-r0.5", 91.0)):
        cifar10.append(one, options.csv)
    found = cifar10.finished(options.csv)
    assert [r["name"] for r in found] == ["dense-56", "dmnn-56-r0.5", "renamed"]
    assert found[1]["top1"] == "91.0"
    assert cifar10.is_finished("dense-56", options)
    assert not cifar10.is_finished("dense-44", options)
    options.epochs = 4
    assert not cifar10.is_finished("dense-56", options)
    cifar10.append(row("dense-56", 93.0, epochs=4), options.csv)
    found = [(r["name"], r["top1"]) for r in cifar10.finished(options.csv)]
    assert found[0] == ("dense-56", "90.0")
    assert found[-1] == ("dense-56", "93.0")


def test_a_row_that_fails_or_is_taken_leaves_the_others(options, capsys):
    assert cifar10.finish("dense-20", options)  # there is no data
    assert "no such folder" in capsys.readouterr().err
    with runs.locked(options.runs / ".dense-20-3-epochs.lock"):
        assert not cifar10.finish("dense-20", options)
    assert "another process" in capsys.readouterr().out


def test_a_row_that_is_stopped_stops_the_others(options, monkeypatch):
    """As Ctrl-C and a terminating signal do, which end a run in order."""

    def stopped(recipe, **_):
        raise Interrupted("stopped in epoch 1")

    monkeypatch.setattr(cifar10, "finetune", stopped)
    with pytest.raises(Interrupted):
        cifar10.finish("dense-20", options)
    assert not cifar10.finished(options.csv)


def test_again_starts_anew(options, monkeypatch):
    cifar10.append(row("dense-20"), options.csv)
    left = options.runs / "dense-20-3-epochs" / "last.pt"
    left.parent.mkdir(parents=True)
    left.touch()
    monkeypatch.setattr(cifar10, "run", lambda name, _: row(name, 92.0))
    assert not cifar10.finish("dense-20", options)
    assert left.exists()
    options.again = True
    assert not cifar10.finish("dense-20", options)
    assert not left.exists()
    assert cifar10.finished(options.csv)[0]["top1"] == "92.0"


def test_the_report_puts_rows_and_seeds_between_its_marks(options, tmp_path):
    static = dict(N=0, gated_flops_ratio="", network_flops_ratio=1.0)
    longer = row("dense-56", 80.0, **static, epochs=6)
    for one in (row("dense-56", 90.0, **static), row("dense-56-seed1", 92.0, **static), longer):
        cifar10.append(one, options.csv)
    cifar10.append(dataclasses.replace(row("dmnn-56-r0.5"), spread=0.0456), options.csv)
    page = tmp_path / "results.md"
    page.write_text("before\n{}old\n{}after\n".format(*cifar10_report.MARKS))
    rows = cifar10.finished(options.csv)
    for _ in range(2):
        cifar10_report.put(cifar10_report.table(rows), cifar10_report.MARKS, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("`dmnn-56-r0.5` | 90.0 | 0.500 | 0.490 | 0.046") == 1
    assert "`dense-56`, 3 epochs: 91.00 ± 1.41 over 2 seeds" in text
    cifar10_report.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    (tmp_path / "bare.md").write_text("no marks")
    with pytest.raises(SystemExit, match="rows"):
        cifar10_report.put("", cifar10_report.MARKS, tmp_path / "bare.md")
