"""Trackers beside the log, in their offline modes."""

import json
import warnings
from typing import ClassVar

import pytest
from finetune_data import NET, image_folders

from dmnn_convert import ArgumentError
from dmnn_convert.finetune import Recipe, finetune
from dmnn_convert.finetune.trackers import RUNS, trackers

ROWS = ({"loss": 3.0, "top1": 10.0}, {"loss": 2.0, "top1": 20.0})


def imported(name):
    with warnings.catch_warnings():  # other people's
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def one(name, folder, epochs):
    """Return the tracker alone, without TensorBoard's."""
    return trackers([name], folder, {"lr": 0.1, "arch": "net"}, epochs)[0]


@pytest.mark.filterwarnings("ignore")  # MLflow's own, of its stores and of pydantic
def test_mlflow_has_the_rows_and_resumes_its_run(tmp_path, monkeypatch):
    mlflow = imported("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    mlflow.set_tracking_uri(uri)
    first = one("mlflow", tmp_path, 0)
    first.add(ROWS[0], 1)
    first.close(failed=True)
    assert json.loads((tmp_path / RUNS).read_text()) == {"mlflow": first.id}
    again = one("mlflow", tmp_path, 1)
    again.add(ROWS[1], 2)
    again.close(failed=False)
    assert again.id == first.id
    client = mlflow.MlflowClient(uri)
    run = client.get_run(first.id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", tmp_path.name)
    assert run.data.params == {"lr": "0.1", "arch": "net"}
    history = client.get_metric_history(first.id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 3.0), (2, 2.0)]
    assert one("mlflow", tmp_path, 0).id != first.id  # a new run in the same folder
    mlflow.end_run()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Weights & Biases' own
def test_wandb_writes_offline(tmp_path, monkeypatch):
    wandb = imported("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = one("wandb", tmp_path, 0)
    for epoch, row in enumerate(ROWS, 1):
        tracker.add(row, epoch)
    summary = dict(tracker.run.summary)
    assert (summary["loss"], summary["epoch"]) == (2.0, 2)
    assert dict(tracker.run.config) == {"lr": 0.1, "arch": "net"}
    tracker.close(failed=False)
    assert wandb.run is None
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    again = one("wandb", tmp_path, 2)
    again.close(failed=True)
    assert again.id == tracker.id == json.loads((tmp_path / RUNS).read_text())["wandb"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_library_is_told_before_training(tmp_path, monkeypatch, name):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ArgumentError, match=rf'pip install "dmnn-convert\[{name}\]"'):
        trackers([name], tmp_path, {}, 0)
    assert list(tmp_path.iterdir()) == []


class Fake:
    """Stands in for a tracker, and keeps what it is told."""

    name = id = "mlflow"
    told: ClassVar = []

    def __init__(self, folder, config, run):
        self.told.append(("open", config["lr"], run))

    def add(self, figures, epoch):
        self.told.append((epoch, figures["test_top1"]))

    def close(self, *, failed):
        self.told.append(("closed", failed))


def test_a_run_tells_its_trackers(tmp_path, monkeypatch):
    monkeypatch.setitem(
        __import__("dmnn_convert.finetune.trackers", fromlist=["_KINDS"])._KINDS, "mlflow", Fake
    )
    data = image_folders(tmp_path / "images")
    recipe = Recipe(arch=NET, data=str(data), input_size=8, epochs=2, batch_size=6, workers=0)
    recipe = recipe.with_changes(
        {"device": "cpu", "output": str(tmp_path / "run"), "weights": "random", "track": ["mlflow"]}
    )
    found = finetune(recipe)
    opened, first, second, closed = Fake.told
    assert opened == ("open", recipe.lr, None)
    assert (first[0], second) == (1, (2, found.evaluation.top1))
    assert closed == ("closed", False)
