"""`dmnn-convert budget` and `evaluate --curve`, on a network trained for levels."""

import csv
import json

import pytest
import torch
from click.testing import CliRunner
from finetune_data import NET, image_folders

import dmnn_convert
from dmnn_convert import Cascade, load_level
from dmnn_convert.cli.convert import cli
from dmnn_convert.errors import ArgumentError
from dmnn_convert.finetune import Recipe, finetune
from dmnn_convert.io import zoo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = image_folders(tmp_path_factory.mktemp("images"))
    recipe = Recipe(arch=NET, data=str(root), n=4, levels=(0.25, 0.5, 1.0), split="exact")
    small = {"input_size": 8, "epochs": 1, "batch_size": 6, "workers": 0, "device": "cpu"}
    options = {"held_out": 0.3, "distill": 0.0, "output": str(root / "run")}
    finetune(recipe.with_changes({**small, **options}))
    return root


def ran(verb, folder, *words):
    done = CliRunner().invoke(cli, [verb, str(folder / "run" / "final"), *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_level_is_saved_as_a_plain_network(folder, tmp_path):
    words = ("--arch", NET, "--target", 0.7, "--policy", "level", "-o", tmp_path / "out")
    found = json.loads(ran("budget", folder, *words, "--format=json"))
    assert found["policy"] == "level" and found["name"] in ("0.25", "0.5")
    assert found["held_out"]["flops_ratio"] == found["test"]["flops_ratio"] <= 0.7
    assert found["all_on"]["flops_ratio"] == pytest.approx(1, abs=0.01)
    network = load_level(tmp_path / "out", zoo.build(NET))
    assert not any("dmnn" in type(m).__module__ for m in network.modules())
    model, _ = dmnn_convert.load(folder / "run" / "final", zoo.build(NET))
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad(), dmnn_convert.at_level(model.eval(), float(found["name"])):
        torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-5)


def test_the_best_policy_is_chosen_on_held_out_images(folder, tmp_path):
    words = ("--arch", NET, "--target", 0.8, "-o", tmp_path / "out")
    text = ran("budget", folder, *words, "--input-size", "3,8,8")
    policy = text.split()[0]
    again = f"{tmp_path / 'out'} --config {folder / 'run' / 'recipe.yaml'}"
    assert f"Next: dmnn-convert deploy {again} -o deployed" in text
    assert f"({str(tmp_path / 'out')!r}, <your unconverted network>)" in text
    assert policy in ("level", "cascade") and "held-out images:" in text
    assert "test images, all sub-blocks on: top-1" in text
    assert "gates left out: set_budget" in text  # the gates of a levels network are not trained
    if policy == "level":
        assert "the level is kept" in text
        assert load_level(tmp_path / "out", zoo.build(NET))
    else:
        assert len(Cascade.load(tmp_path / "out", zoo.build(NET)).networks) > 1


@pytest.mark.slow
def test_a_budget_out_of_reach_names_the_floor(folder, tmp_path):
    words = ("--arch", NET, "--policy", "cascade", "--target", 0.01, "-o", tmp_path / "out")
    with pytest.raises(ArgumentError, match="the lowest level takes 0"):
        ran("budget", folder, *words)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArgumentError, match="jump"):
        ran("budget", folder, "--arch", NET, "--policy", "gates", "--target", 0.5)
    with pytest.raises(ArgumentError, match=r"is for images .* leave it out"):
        ran("budget", folder, "--arch", NET, "--target", 0.5, "--input-size", 16)


@pytest.mark.slow
def test_a_curve_as_table_csv_and_picture(folder, tmp_path):
    pytest.importorskip("matplotlib")
    text = ran("evaluate", folder, "--arch", NET, "--curve", tmp_path / "curve.png")
    assert [line.split()[0] for line in text.splitlines()[1:4]] == ["level"] * 3
    words = ("--curve", tmp_path / "curve.csv", "--format=json")
    described = json.loads(ran("evaluate", folder, "--arch", NET, *words))
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [row["name"] for row in rows if row["policy"] == "level"]
    assert [name for name in names if name in ("0.25", "0.5", "1")] == ["0.25", "0.5", "1"]
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert len(described["rows"]) == len(rows)
    with pytest.raises(ArgumentError, match="end the name in one of"):
        ran("evaluate", folder, "--arch", NET, "--curve", tmp_path / "curve.x")


def test_help_shows_an_example():
    text = CliRunner().invoke(cli, ["budget", "--help"]).output
    assert "dmnn-convert budget runs/0.5/final --target 0.6 -o deployed" in text
