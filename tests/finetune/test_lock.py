"""Two runs never write to one folder, and a folder deleted under a run is noticed."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from finetune_data import NET, image_folders, tiny_recipe

from dmnn_convert import ArgumentError, CheckpointError, load
from dmnn_convert.finetune import LAST, finetune
from dmnn_convert.finetune.lock import LOCK, Lock, locked
from dmnn_convert.finetune.run import _Run
from dmnn_convert.io import zoo


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_folders(tmp_path_factory.mktemp("images"))


@pytest.fixture
def recipe(data, tmp_path):
    return tiny_recipe(data, tmp_path / "run")


def test_one_of_two_holds_a_folder_and_leaves_nothing(tmp_path):
    with locked(tmp_path) as lock:
        assert lock.holds()
        told = rf"another run writes there \(process {os.getpid()} on .*another --output"
        with pytest.raises(ArgumentError, match=told), locked(tmp_path):
            pass
        assert lock.holds()
    assert not list(tmp_path.iterdir())
    with locked(tmp_path, wanted=False) as none:
        assert none is None
        assert not list(tmp_path.iterdir())


HOLDS = """
import os, sys, time
from pathlib import Path
from dmnn_convert.finetune.lock import Lock

lock = Lock(Path(sys.argv[1]))
child = os.fork()  # as loader processes are, and outlives its parent
if not child:
    print(os.getpid(), flush=True)  # by the child: it has let go of the lock by then
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_run_holds_nothing_even_while_its_children_live(tmp_path):
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        child = int(running.stdout.readline())
        try:
            with pytest.raises(ArgumentError, match=f"process {running.pid} on"):
                Lock(tmp_path)
            running.kill()
            running.wait()
            assert (tmp_path / LOCK).exists()
            os.kill(child, 0)  # still there
            Lock(tmp_path).release()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_second_run_is_refused_and_the_first_unharmed(recipe, tmp_path, monkeypatch):
    refused = []

    def second(run, means, first=_Run._end_epoch):
        for resume in (False, True):
            with pytest.raises(ArgumentError) as error:
                finetune(recipe, resume=resume)
            refused.append(str(error.value))
        return first(run, means)

    monkeypatch.setattr(_Run, "_end_epoch", second)
    finetune(recipe)
    assert len(refused) == 4
    assert "another run writes there" in refused[0]
    assert "another run writes there" in refused[3]
    assert not (tmp_path / "run" / LOCK).exists()
    load(tmp_path / "run" / "final", model=zoo.build(NET))


def test_a_deleted_output_ends_the_run_with_its_state_saved(recipe, tmp_path, monkeypatch):
    whole = finetune(recipe.with_changes({"output": str(tmp_path / "whole")}))
    folder = tmp_path / "run"

    def deleted(run, means, before=_Run._end_epoch):
        shutil.rmtree(folder)
        return before(run, means)

    with monkeypatch.context() as patched:
        patched.setattr(_Run, "_end_epoch", deleted)
        with pytest.raises(CheckpointError, match=r"was deleted .* --resume continues"):
            finetune(recipe)
    assert [file.name for file in folder.iterdir()] == [LAST]
    assert torch.load(folder / LAST, weights_only=True)["trainer"]["epoch"] == 1
    assert finetune(recipe, resume=True).evaluation == whole.evaluation


def test_an_output_deleted_at_the_very_end_holds_the_result(recipe, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def deleted(run, *found, before=_Run._finish):
        shutil.rmtree(folder)
        return before(run, *found)

    monkeypatch.setattr(_Run, "_finish", deleted)
    with pytest.raises(CheckpointError, match=r"was deleted .*result\.json and final/ are there"):
        finetune(recipe)
    assert sorted(file.name for file in folder.iterdir()) == ["final", "result.json"]
    load(folder / "final", model=zoo.build(NET))


def test_a_run_whose_folder_another_one_took_leaves_that_alone(recipe, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def taken(run, means, before=_Run._end_epoch):
        shutil.rmtree(folder)
        folder.mkdir()
        with locked(folder):
            return before(run, means)

    monkeypatch.setattr(_Run, "_end_epoch", taken)
    with pytest.raises(ArgumentError, match="another run writes there"):
        finetune(recipe)
    assert not list(folder.iterdir())
