"""Networks go to the Hub and come back; nothing here needs a network.

A fake of the Hub's interface lays what is sent into huggingface_hub's own cache, from which the
library itself then takes it.
"""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from finetune_data import NET, image_folders
from torchvision.models import resnet18

from dmnn_convert import (
    ArgumentError,
    Cascade,
    Curve,
    CurveRow,
    Dynamized,
    dynamize,
    evaluate,
    freeze,
    from_pretrained,
    model_card,
    push_to_hub,
    save,
    save_level,
)
from dmnn_convert.finetune import Recipe, finetune
from dmnn_convert.io import zoo

huggingface_hub = pytest.importorskip("huggingface_hub")

COMMIT, NAME = "0" * 40, "me/half"
X = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BATCHES = [(X, torch.arange(6) % 3)]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    source = resnet18(num_classes=3).eval()
    model, table = dynamize(source, 2, split="exact", input_size=(3, 32, 32))
    return Dynamized(model.eval(), table)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return the cache that a fake of the Hub fills."""
    told = []

    class FakeApi:
        def __init__(self, token=None):
            told.append(("token", token))

        def create_repo(self, repo_id, *, private, exist_ok):
            huggingface_hub.utils.validate_repo_id(repo_id)
            assert exist_ok
            told.append(("private", private))
            return f"https://hub/{repo_id}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            place = tmp_path / "cache" / f"models--{repo_id.replace('/', '--')}"
            shutil.copytree(folder_path, place / "snapshots" / COMMIT)
            (place / "refs").mkdir()
            (place / "refs" / "main").write_text(COMMIT)
            told.append(("message", commit_message))

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    FakeApi.told = told
    return tmp_path / "cache"


def fetched(hub, model=None, name=NAME):
    return from_pretrained(name, model, cache_dir=hub, local_files_only=True)


def sent(hub):
    folder = hub / f"models--{NAME.replace('/', '--')}" / "snapshots" / COMMIT
    return {file.name for file in folder.iterdir()}, (folder / "README.md").read_text()


def head(card):
    return yaml.safe_load(card.split("---")[1])


def test_a_model_goes_to_the_hub_and_comes_back(network, hub):
    model, table = network
    found = evaluate(model, table, BATCHES)
    curve = Curve((CurveRow("level", "0.5", 0.53, 91.25, 1.0),))
    url = push_to_hub(
        model,
        NAME,
        arch="resnet18",
        num_classes=3,
        results=found,
        curve=curve,
        license="bsd-3-clause",
        source="torchvision",
        private=True,
        token="secret",
    )
    assert url == f"https://hub/{NAME}"
    assert huggingface_hub.HfApi.told[:2] == [("token", "secret"), ("private", True)]
    names, card = sent(hub)
    assert names == {"config.json", "model.safetensors", "flops.json", "README.md"}
    assert head(card)["license"] == "bsd-3-clause"
    accuracy = head(card)["model-index"][0]["results"][0]["metrics"][0]["value"]
    assert accuracy == pytest.approx(found.top1 / 100, abs=1e-4)
    assert str(table) in card
    assert f"{found.network_flops_ratio.mean:.3f}" in card
    assert "| level | 0.5 | 0.530 | 91.25 % |" in card
    assert f'model, table = from_pretrained("{NAME}")' in card
    assert "secret" not in card
    again = fetched(hub)
    assert again.table == table
    with torch.no_grad():
        assert torch.equal(again.model.eval()(X), model(X))


@pytest.mark.slow
def test_a_cascade_and_a_level_come_back_as_what_they_are(network, hub, tmp_path):
    model = network.model
    cascade = Cascade.fit(model, BATCHES, levels=(0.5, 1.0), flops_ratio=1.5)
    push_to_hub(cascade, NAME, arch="resnet18", num_classes=3)
    names, card = sent(hub)
    assert names == {"cascade.json", "cascade.safetensors", "README.md"}
    assert f"{cascade.fitted.top1:.2f} %" in card
    assert "Not stated" in card
    assert "license" not in head(card)
    again = fetched(hub)
    assert isinstance(again, Cascade)
    save_level(model, 0.5, tmp_path / "level", arch="resnet18", num_classes=3)
    push_to_hub(tmp_path / "level", "me/level")
    level = fetched(hub, name="me/level")
    with torch.no_grad():
        assert torch.equal(again(X), cascade(X))
        assert torch.equal(level.eval()(X), freeze(model, 0.5)(X))


@pytest.mark.slow
def test_a_run_tells_its_results_and_recipe_but_no_places(hub, tmp_path):
    data = image_folders(tmp_path / "my-photos")
    changes = {"input_size": 8, "epochs": 1, "batch_size": 6, "workers": 0, "device": "cpu"}
    recipe = Recipe(arch=NET, data=str(data), weights="random", lr=0.01)
    found = finetune(recipe.with_changes({**changes, "output": str(tmp_path / "my-run")}))
    (tmp_path / "my-run" / "final" / "evil.pkl").write_bytes(b"")
    push_to_hub(tmp_path / "my-run" / "final", NAME)
    names, card = sent(hub)
    assert "evil.pkl" not in names
    assert f"{found.evaluation.top1:.2f} %" in card
    assert "lr: 0.01" in card
    assert "my-photos" not in card
    assert "my-run" not in card
    assert "model=source" in card
    assert NET not in card
    again = fetched(hub, model=zoo.build(NET))
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(again.model.eval()(images), found.model(images))


@pytest.mark.slow
def test_a_directory_needs_no_hub(network, tmp_path, monkeypatch):
    save(network.model, tmp_path / "saved", arch="resnet18", num_classes=3)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert from_pretrained(tmp_path / "saved").table == network.table
    assert "# name" in model_card(tmp_path / "saved", "me/name")
    with pytest.raises(ArgumentError, match=r"dmnn-convert\[hub\]"):
        from_pretrained("me/nothing")
    with pytest.raises(ArgumentError, match=r"dmnn-convert\[hub\]"):
        push_to_hub(tmp_path / "saved", NAME)


@pytest.mark.slow
def test_what_is_not_there_or_wrong_is_told(network, hub, tmp_path):
    with pytest.raises(ArgumentError, match=r'from_pretrained\("me/nothing"\)'):
        fetched(hub, name="me/nothing")
    with pytest.raises(ArgumentError, match=r'push_to_hub\("not a name"\)'):
        push_to_hub(network.model, "not a name")
    (tmp_path / "empty").mkdir()
    for call in (push_to_hub, model_card):
        with pytest.raises(ArgumentError, match="holds none of"):
            call(tmp_path / "empty", NAME)
    with pytest.raises(ArgumentError, match="holds none of"):
        from_pretrained(tmp_path / "empty")
    save(network.model, tmp_path / "saved")
    with pytest.raises(ArgumentError, match="has its own"):
        push_to_hub(tmp_path / "saved", NAME, arch="resnet18")
    push_to_hub(tmp_path / "saved", NAME)
    with pytest.raises(ArgumentError, match="cannot be built by name"):
        fetched(hub)
    assert 'from_pretrained("me/half", model=source)' in sent(hub)[1]
    weights = next(Path(hub).rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(Exception, match="safetensors"):
        fetched(hub, model=resnet18(num_classes=3))
