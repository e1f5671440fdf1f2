"""Networks that are loaded by name, with checksums and a card."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from quick import slow_unless

import dmnn_convert
from dmnn_convert import ArgumentError, CheckpointError, dynamize, load, save

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import release_model  # noqa: E402

ARCH = "examples/cifar_resnet.py:resnet20"
SIZE = (3, 16, 16)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, as finetune leaves it."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    source = dmnn_convert.zoo.build(str(ROOT / ARCH))
    model, _ = dynamize(source, N=2, split="exact", input_size=SIZE)
    save(model.eval(), folder / "final", arch=str(ROOT / ARCH))
    own = {"top1": 88.125, "network_flops_ratio": {"mean": 0.512}}
    result = {"levels": {"0.5": own}, "recipe": {"epochs": 30, "n": 2}, "evaluation": own}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def models(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DMNN_CONVERT_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(ROOT)  # the source is named from there
    release_model.release(run, "tiny", ARCH, "BSD-2-Clause", tmp_path / "models")
    return tmp_path / "models"


def test_a_released_network_is_loaded_by_its_name(run, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # from anywhere
    images = torch.randn(2, *SIZE)
    kept, _ = load(run / "final", dmnn_convert.zoo.build(str(ROOT / ARCH)))
    with torch.no_grad():
        assert torch.equal(load("tiny").model(images), kept(images))
    card = (models / "tiny" / "README.md").read_text()
    assert (
        "88.12" in card and "0.512" in card and "BSD-2-Clause" in card and "| epochs | 30" in card
    )
    assert [path.name for path in models.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    "file", slow_unless("config.json".__eq__, ["model.safetensors", "config.json", "README.md"])
)
def test_a_changed_file_is_refused(models, file):
    path = models / "tiny" / file
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="SHA-256"):
        load("tiny")


def test_a_missing_file_and_a_broken_list_are_refused(models):
    (models / "tiny" / "flops.json").unlink()
    with pytest.raises(CheckpointError, match=r"flops\.json"):
        load("tiny")
    listed = models / "tiny" / "release.json"
    listed.write_text('{"format": 1, "sha256": {"../config.json": "0"}}')
    with pytest.raises(CheckpointError, match="outside"):
        load("tiny")
    listed.write_text("[]")
    with pytest.raises(CheckpointError, match="released network"):
        load("tiny")


def test_an_unknown_name_is_told_the_known_ones(models):
    with pytest.raises(CheckpointError, match="tiny"):
        load("huge")
    shutil.rmtree(models)  # as where the package is installed without them
    with pytest.raises(
        CheckpointError, match=r"\$DMNN_CONVERT_MODELS name the repository's models"
    ):
        load("huge")


@pytest.mark.parametrize("arch", ["examples/../evil.py:net", "/tmp/evil.py:net", "os:getcwd"])
def test_a_release_runs_no_code_but_the_examples(models, arch):
    config = models / "tiny" / "config.json"
    described = json.loads(config.read_text())
    config.write_text(json.dumps({**described, "arch": arch}))
    listed = models / "tiny" / "release.json"
    listed.unlink()
    listed.write_text(release_model.checksums_of(models / "tiny"))
    with pytest.raises(ArgumentError, match="code of its own"):
        load("tiny")


def test_a_directory_that_is_there_is_not_taken_for_a_release(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load("tiny")


def test_a_release_is_not_replaced(run, models):
    with pytest.raises(SystemExit, match="already"):
        release_model.release(run, "tiny", ARCH, "BSD-2-Clause", models)
