"""Trainings of the budget benchmark that go on on another machine."""

import argparse
import shutil
from pathlib import Path

import budget_runs
import pytest
import torch
import unfinished
from cifar10 import FACTORIES
from finetune_data import CLASSES, image_folders

from dmnn_convert.finetune import LAST, Interrupted, finetune
from dmnn_convert.finetune.trainer import Trainer
from dmnn_convert.io import zoo

RUN = budget_runs.RUNS["resnet20-static-0.25"]


@pytest.fixture
def machines(tmp_path):
    """Options of two machines, whose files lie elsewhere."""
    source = zoo.build(f"{FACTORIES}:resnet20")
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        torch.save(source.state_dict(), tmp_path / name / "resnet20-0.th")
    three = image_folders(tmp_path / "three", train=14, test=2)
    for part in ("train", "test"):
        for label in range(10):
            of_one = three / part / CLASSES[label % 3]
            for name in ("here", "there"):
                shutil.copytree(of_one, tmp_path / name / "data" / part / str(label))
    return [
        argparse.Namespace(
            data=path / "data", checkpoints=path, runs=path / "runs", epochs=2, amp=None
        )
        for path in (tmp_path / "here", tmp_path / "there")
    ]


def test_a_training_goes_on_elsewhere_as_if_it_had_not_stopped(machines, tmp_path, monkeypatch):
    here, there = machines
    whole = budget_runs.recipe_of(RUN, here).with_changes({"output": str(tmp_path / "whole")})
    finetune(whole)
    step = Trainer._train_step

    def stopping(self, *args):
        step(self, *args)
        if self.updates == 1:
            raise Interrupted("enough")

    monkeypatch.setattr(Trainer, "_train_step", stopping)
    with pytest.raises(Interrupted):
        finetune(budget_runs.recipe_of(RUN, here).with_changes({"save_minutes": 1e-9}))
    monkeypatch.setattr(Trainer, "_train_step", step)
    kept = tmp_path / "kept"
    assert unfinished.keep(RUN, here, kept)
    state = (kept / f"{RUN.name}.pt").read_bytes()
    assert str(tmp_path).encode() not in state
    recipe = budget_runs.recipe_of(RUN, there).with_changes({"save_minutes": 1e-9})
    unfinished.take_up(recipe.with_changes({"epochs": 3}), RUN, kept)
    assert not Path(recipe.output, LAST).exists(), "a state of another recipe"
    unfinished.take_up(recipe, RUN, kept)
    finetune(recipe, resume=True)
    files = (f"{one.output}/{LAST}" for one in (whole, recipe))
    mine, theirs = (torch.load(file, weights_only=True) for file in files)
    for name, value in mine["trainer"]["model"].items():
        assert torch.equal(value, theirs["trainer"]["model"][name]), name
    assert not unfinished.keep(RUN, there, kept), "a finished run"
    assert not list(kept.iterdir())
