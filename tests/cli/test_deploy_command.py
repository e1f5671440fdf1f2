"""`dmnn-convert deploy`, on what the other commands write."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from finetune_data import NET, image_folders
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from dmnn_convert import Cascade, dynamize, freeze, load_deployed, save, save_level
from dmnn_convert.cli.convert import cli
from dmnn_convert.errors import ArgumentError, CheckpointError
from dmnn_convert.io import zoo

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

IMAGES = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def ran(*words, verb="deploy"):
    done = CliRunner().invoke(cli, [verb, *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return dynamize(zoo.build(NET), 2, split="exact", input_size=(3, 8, 8)).model.eval()


def test_a_cascade(model, tmp_path):
    cascade = Cascade.fit(model, [(IMAGES, torch.arange(20) % 3)], levels=(0.5, 1.0))
    cascade.save(tmp_path / "cascade")
    words = ("--arch", NET, "--engine", "onnxruntime", "-o", tmp_path / "out")
    assert "cascade.onnx" in ran(tmp_path / "cascade", *words)
    check_same(tmp_path / "out", cascade)


def check_same(folder, network):
    with torch.no_grad():
        torch.testing.assert_close(
            load_deployed(folder, threads=1)(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5
        )


def test_a_saved_level(model, tmp_path):
    save_level(model, 0.5, tmp_path / "level")
    words = ("--arch", NET, "--engine", "onnxruntime", "-o", tmp_path / "out")
    text = ran(tmp_path / "level", *words)
    assert text.startswith("Deployed a network of fp32") and "network.onnx" in text
    check_same(tmp_path / "out", freeze(model, 0.5))
    told = json.loads((tmp_path / "out" / "deploy.json").read_text())
    assert told["preprocessing"]["side"] == 8 and told["preprocessing"]["crop_pct"] == 1.0


@pytest.mark.slow
def test_a_deployed_cascade_is_evaluated_in_its_engine(model, tmp_path):
    """Accuracy and exits are those of PyTorch; images are prepared as they were at deployment."""
    data, kept, out = image_folders(tmp_path / "data"), tmp_path / "cascade", tmp_path / "out"
    files = (data / "test").glob("*/*.png")
    images = torch.stack([pil_to_tensor(Image.open(file)) for file in files]) / 255
    cascade = Cascade.fit(model, [(IMAGES, torch.arange(20) % 3)], levels=(0.5, 1.0))
    with torch.no_grad():
        best = cascade.networks[0]((images - 0.4) / 0.2).softmax(1).topk(2).values
        cascade.thresholds.fill_((best[:, 0] - best[:, 1]).quantile(0.55))
    cascade.save(kept)
    own = ("--mean", "0.4,0.4,0.4", "--std", "0.2,0.2,0.2")
    on = ("--data", data, "--workers", 0)
    ran(kept, "--arch", NET, "--engine", "onnxruntime", "-o", out, *on, *own)
    found = json.loads(ran(out, *on, "--format", "json", verb="evaluate"))
    plain = json.loads(ran(kept, "--arch", NET, *on, *own, "--format=json", verb="evaluate"))
    assert found["images"] == 15 and found["engine"] == "onnxruntime"
    assert found["top1"] == pytest.approx(plain["evaluation"]["top1"])
    exits = [exit["share"] for exit in plain["cascade"]["exits"]]
    assert found["answered_by"] == pytest.approx(exits) and 0 < exits[0] < 1
    assert found["milliseconds"] > 0
    text = ran(out, *on, verb="evaluate")
    assert f"top-1 {found['top1']:.2f} %" in text and "answered by each network" in text
    with pytest.raises(ArgumentError, match="a deployed network"):
        ran(out, *on, "--source", verb="evaluate")
    (data / "test" / "red").rename(data / "test" / "rouge")
    with pytest.raises(ArgumentError, match="classes blue, green, rouge"):
        ran(out, *on, verb="evaluate")


@pytest.mark.slow
def test_a_saved_cascade_calibrated_on_a_folder_of_images(model, tmp_path):
    data = image_folders(tmp_path / "data")
    labels = torch.zeros(20).long()
    cascade = Cascade.fit(model, [(IMAGES, labels)], levels=(0.5, 1.0), flops_ratio=1.2)
    cascade.save(tmp_path / "cascade")
    words = ("--arch", NET, "--engine", "onnxruntime", "--data", data, "--workers", 0)
    text = ran(tmp_path / "cascade", *words, "--precision", "int8", "-o", tmp_path / "out")
    assert "thresholds: " in text and "cascade of int8" in text
    run = load_deployed(tmp_path / "out")
    assert run.told["classes"] == ["blue", "green", "red"] and run.told["precision"] == "int8"
    assert np.isfinite(run(IMAGES.numpy())).all()


def test_a_level_of_a_converted_network(model, tmp_path):
    save(model, tmp_path / "saved")
    words = ("--arch", NET, "--engine", "torch", "-o", tmp_path / "out")
    with pytest.raises(ArgumentError, match=r"branches of an ONNX file.*freeze\(model, 0\.5\)"):
        ran(tmp_path / "saved", *words)
    assert not (tmp_path / "out").exists()
    ran(tmp_path / "saved", "--level", 0.5, *words)
    check_same(tmp_path / "out", freeze(model, 0.5))


@pytest.mark.slow
def test_gates_are_timed_beside_the_source(model, tmp_path, caplog):
    save(model, tmp_path / "saved")
    words = ("--arch", NET, "--engine", "onnxruntime", "-o", tmp_path / "out")
    text = ran(tmp_path / "saved", *words)
    told = json.loads((tmp_path / "out" / "deploy.json").read_text())
    gated, dense = (f"{told['times'][key]:.2f} ms" for key in ("gated", "dense"))
    assert text.startswith("Deployed a gated network of fp32")
    assert f"an image takes {gated} in onnxruntime, where the dense network takes {dense}" in text
    slower = told["times"]["gated"] >= told["times"]["dense"]
    assert ("Cascade.fit" in caplog.text) == slower
    check_same(tmp_path / "out", model)


def test_what_cannot_be_deployed(model, tmp_path):
    with pytest.raises(CheckpointError, match="give a directory that save"):
        ran(tmp_path, "--arch", NET, "-o", tmp_path / "out")
    save_level(model, 0.5, tmp_path / "level")
    words = (tmp_path / "level", "-o", tmp_path / "out")
    with pytest.raises(ArgumentError, match="give --arch"):
        ran(*words)
    with pytest.raises(ArgumentError, match="no longer holds a converted network"):
        ran(*words, "--level", 0.5, "--arch", NET)
    with pytest.raises(ArgumentError, match="--data DIR"):
        ran(*words, "--arch", NET, "--precision", "int8")
    own = Cascade([torch.nn.Flatten(), torch.nn.Flatten()], [0.5])
    own.save(tmp_path / "own")
    with pytest.raises(ArgumentError, match=r"networks of your own.*Cascade\.load"):
        ran(tmp_path / "own", "--arch", NET, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
