"""`dmnn-convert evaluate`, on runs and saved conversions, dense ones too."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from finetune_data import NET, image_folders

from dmnn_convert import Cascade, dynamize, save, save_level
from dmnn_convert.cli.convert import cli
from dmnn_convert.errors import ArgumentError, CheckpointError
from dmnn_convert.finetune import Recipe, finetune
from dmnn_convert.io import zoo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = image_folders(tmp_path_factory.mktemp("images"))
    torch.save(zoo.build(NET).state_dict(), root / "tiny.pth")
    for name, n in (("dense", 0), ("dynamic", 2)):
        recipe = Recipe(arch=NET, checkpoint=str(root / "tiny.pth"), data=str(root), n=n)
        small = {"input_size": 8, "epochs": 1, "batch_size": 6, "workers": 0, "device": "cpu"}
        finetune(recipe.with_changes({**small, "output": str(root / name)}))
    shutil.rmtree(root / "train")
    return root


def evaluated(folder, *words):
    done = CliRunner().invoke(cli, ["evaluate", str(folder), *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def values_of(folder, *words):
    return json.loads(evaluated(folder, "--format=json", *words))


@pytest.mark.parametrize("name", ["dense", "dynamic"])
def test_a_run_is_read_without_its_training_images(folder, name):
    found = values_of(folder / name / "final", "--arch", NET, "--source")
    expected = json.loads((folder / name / "result.json").read_text())["evaluation"]
    assert found["evaluation"]["top1"] == expected["top1"]
    assert found["source"]["images"] == 15
    assert ("flops_ratio" in found["evaluation"]) == (name == "dynamic")


def test_the_text_of_a_dense_network_speaks_of_no_gates(folder):
    text = evaluated(folder / "dense" / "final", "--arch", NET)
    assert "dense" in text
    assert "worst first" in text
    assert "gate" not in text
    with pytest.raises(ArgumentError, match="--frozen"):
        evaluated(folder / "dense" / "final", "--arch", NET, "--frozen")


def test_weights_alone_need_the_architecture(folder):
    with pytest.raises(ArgumentError, match="give --arch"):
        evaluated(folder / "dense" / "final")
    shutil.copytree(folder / "dense" / "final", folder / "alone")
    words = ("--arch", NET, "--data", folder, "--input-size", 8, "--workers", 0)
    assert values_of(folder / "alone", *words)["evaluation"]["images"] == 15


@pytest.mark.parametrize("name", ["dense", "dynamic"])
def test_data_of_other_classes_are_refused(folder, tmp_path, name):
    shutil.copytree(folder / "test", tmp_path / "test")
    shutil.rmtree(tmp_path / "test" / "red")
    with pytest.raises(ArgumentError, match=r"has 2 classes, but the network returns \(1, 3\)"):
        evaluated(folder / name / "final", "--arch", NET, "--data", tmp_path)


def test_images_of_another_size_are_refused(folder):
    with pytest.raises(ArgumentError, match="is for images"):
        evaluated(folder / "dynamic" / "final", "--arch", NET, "--input-size", 16)


def test_images_that_are_left_out_are_told_of(folder, tmp_path):
    shutil.copytree(folder / "test", tmp_path / "test")
    broken = tmp_path / "test" / "red" / "0.png"
    broken.write_bytes(broken.read_bytes()[:40])
    words = (folder / "dynamic" / "final", "--arch", NET, "--data", tmp_path)
    with pytest.raises(ArgumentError, match="--on-bad-image skip"):
        evaluated(*words)
    found = values_of(*words, "--on-bad-image=skip", "--frozen")
    assert (found["skipped_images"], found["evaluation"]["images"]) == (1, 14)
    text = evaluated(*words, "--on-bad-image=skip")
    assert "14 images of 3 classes; 1 image left out that cannot be read" in text


def test_a_picture_that_cannot_be_written_is_told_before_the_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dmnn_convert.cli.assess.assess", None)
    for path, words in ((tmp_path / "none" / "p.png", "no folder"), (tmp_path / "p.x", "end")):
        with pytest.raises(ArgumentError, match=words):
            evaluated(folder / "dynamic" / "final", "--plot", path)


def test_a_conversion_that_names_no_architecture_takes_the_given_one(folder, tmp_path):
    model, _ = dynamize(zoo.build("resnet18", num_classes=3), 2, input_size=(3, 32, 32))
    save(model, tmp_path / "saved")
    words = ("--data", folder, "--workers=0", "--num-classes=3", "--arch=resnet18")
    found = values_of(tmp_path / "saved", *words)
    assert found["evaluation"]["images"] == 15
    with pytest.raises(ArgumentError, match="give --arch"):
        evaluated(tmp_path / "saved", *words[:-1])


def test_the_end_of_a_run_names_the_command_that_says_more(tmp_path):
    images = image_folders(tmp_path)
    arguments = ["--arch", NET, "--data", str(images), "--input-size", "8", "--epochs", "1"]
    arguments += ["--batch-size", "6", "--workers", "0", "--device", "cpu", "--distill", "0"]
    run = CliRunner().invoke(cli, ["finetune", *arguments, "--output", str(tmp_path / "run")])
    assert run.exit_code == 0, run.output
    line = next(line for line in run.output.splitlines() if line.endswith(" says more."))
    command, *words = line.removesuffix(" says more.").split()
    more = CliRunner().invoke(cli, words)
    assert (command, more.exit_code) == ("dmnn-convert", 0), more.output
    assert "top-1" in more.output


KILLS_LOADERS = """
import os, sys
from dmnn_convert.cli import main
from dmnn_convert.cli import assess

assess.test_transform = lambda how: lambda image: os.kill(os.getpid(), 9)
sys.argv[0] = "dmnn-convert"
main()
"""


@pytest.mark.slow
def test_a_loader_process_that_dies_is_told(folder):
    # In a process of its own: PyTorch tells of a dead loader process in the midst of anything.
    words = ["evaluate", str(folder / "dense" / "final"), "--arch", NET, "--workers", "1"]
    command = [sys.executable, "-c", KILLS_LOADERS, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "loader process died" in done.stderr.splitlines()[-1]
    assert "--resume" not in done.stderr


def test_images_are_reported_with_their_files(folder, tmp_path):
    files = [tmp_path / "images.csv", tmp_path / "images.html"]
    shutil.copytree(folder / "test", tmp_path / "test")
    (tmp_path / "test" / "red" / "0.png").write_bytes(b"no picture")
    (tmp_path / "kinds.csv").write_text("blue,sky\ngreen,earth\nred,earth\n")
    words = ("--arch", NET, "--data", tmp_path, "--images", files[0], "--images", files[1])
    words += ("--categories", tmp_path / "kinds.csv", "--on-bad-image", "skip")
    found = values_of(folder / "dynamic" / "final", *words)["evaluation"]
    rows = list(csv.DictReader(files[0].read_text().splitlines()))
    known = sorted(str(f.relative_to(tmp_path)) for f in (tmp_path / "test").glob("*/*.png"))
    assert [row["image"] for row in rows] == [name for name in known if name != "test/red/0.png"]
    assert all(Path(row["image"]).parent.name == row["label"] for row in rows)
    assert 100 * sum(int(row["right"]) for row in rows) / len(rows) == pytest.approx(found["top1"])
    text = files[1].read_text()
    assert "earth" in text
    assert "test/red/1.png" in text


@pytest.mark.slow
def test_a_saved_cascade_is_evaluated_with_its_networks(folder, tmp_path):
    source = zoo.build("resnet18", num_classes=3).eval()
    model, table = dynamize(source, 2, split="exact", input_size=(3, 32, 32))
    held_out = [(torch.randn(20, 3, 32, 32), torch.arange(20) % 3)]
    cascade = Cascade.fit(model, held_out, levels=(0.5, 1.0), flops_ratio=1.0)
    cascade.save(tmp_path / "saved", arch="resnet18", num_classes=3)
    words = ("--data", folder, "--workers=0", "--input-size=32", "--images", tmp_path / "i.csv")
    found = values_of(tmp_path / "saved", *words)
    rows = list(csv.DictReader((tmp_path / "i.csv").read_text().splitlines()))
    assert len(rows) == found["evaluation"]["images"] == 15
    for i, exit in enumerate(found["cascade"]["exits"]):
        own = [row for row in rows if row["level"] == str(i)]
        assert exit["share"] == pytest.approx(len(own) / 15)
    ratio = sum(int(row["macs"]) for row in rows) / 15 / table.dense_total
    assert found["cascade"]["flops_ratio"] == pytest.approx(ratio)
    text = evaluated(tmp_path / "saved", *words[:-2])
    assert "answered by" in text
    assert f"{ratio:.4f}" in text


def test_a_saved_level_is_evaluated_as_a_dense_network(folder, tmp_path):
    torch.manual_seed(0)
    model, _ = dynamize(zoo.build(NET), 2, split="exact", input_size=(3, 8, 8))
    save_level(model.eval(), 0.5, tmp_path / "level")
    words = ("--arch", NET, "--data", folder, "--workers", 0)
    found = values_of(tmp_path / "level", *words)
    assert found["evaluation"]["images"] == 15 and "flops_ratio" not in found["evaluation"]
    with pytest.raises(ArgumentError, match="is for images"):
        evaluated(tmp_path / "level", *words, "--input-size", 16)
    save(model, tmp_path / "level", arch=NET)  # beside it
    with pytest.raises(CheckpointError, match="a level and a converted network"):
        evaluated(tmp_path / "level", *words)


def test_reports_that_make_no_sense_are_refused_before_the_work(folder, tmp_path):
    dense, words = folder / "dense" / "final", ("--arch", NET, "--images")
    with pytest.raises(ArgumentError, match="treats all images alike"):
        evaluated(dense, *words, tmp_path / "images.csv")
    with pytest.raises(ArgumentError, match="end the name in"):
        evaluated(folder / "dynamic" / "final", *words, tmp_path / "images.txt")
    with pytest.raises(ArgumentError, match="evaluates policies"):
        evaluated(dense, *words, tmp_path / "images.csv", "--curve", tmp_path / "curve.csv")
    assert list(tmp_path.iterdir()) == []
