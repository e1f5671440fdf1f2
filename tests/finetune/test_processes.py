"""Fine-tuning in two processes that torchrun starts."""

import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from finetune_data import NET, image_folders, tiny_recipe
from two_processes import in_two_processes

from dmnn_convert.finetune import Interrupted, finetune
from dmnn_convert.finetune.trainer import Trainer


def launch(folder, output, *options, processes=2):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc-per-node={processes}", "-m", "dmnn_convert", "finetune"),
        *(f"--arch={NET}", f"--data={folder}"),
        *("--input-size=8", "--epochs=2", "--batch-size=12", "--workers=0", "--device=cpu"),
        *("--distill=0", f"--output={output}", *options),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_two_processes_write_one_run(tmp_path):
    folder = image_folders(tmp_path / "images")
    output = tmp_path / "run"
    done = launch(folder, output, "--ema=0.9", "--open-epochs=1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "autograd" not in done.stderr
    assert done.stdout.count("top-1") == 1
    described = json.loads((output / "result.json").read_text())
    assert described["evaluation"]["images"] == 15
    assert (output / "last.pt").is_file()
    again = launch(folder, output, "--ema=0.9", "--open-epochs=1", "--resume")
    assert again.returncode == 0, again.stderr[-2000:]


@pytest.mark.slow
def test_an_error_of_one_process_is_the_only_one_with_words(tmp_path):
    folder = image_folders(tmp_path / "images")
    broken = folder / "train" / "red" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    done = launch(folder, tmp_path / "run")
    assert done.returncode != 0
    assert f"Error: {broken}: cannot be read" in done.stderr
    assert "gloo/transport" not in done.stderr


@pytest.mark.slow
def test_norms_over_processes_need_gpus(tmp_path):
    done = launch(image_folders(tmp_path / "images"), tmp_path / "run", "--sync-bn")
    assert done.returncode != 0
    assert "on GPUs only" in done.stderr


@pytest.mark.slow
def test_two_processes_end_where_one_ends(tmp_path):
    """Within the noise of gates and of norms over half of the batch."""
    folder = image_folders(tmp_path / "images", train=40, test=40)
    ends = []
    for processes in (1, 2):
        output = tmp_path / f"{processes}"
        options = ("--epochs=12", "--lr=0.1", "--target=0.6")
        done = launch(folder, output, *options, processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
        ends.append(json.loads((output / "result.json").read_text())["evaluation"])
    one, two = ends
    assert min(one["top1"], two["top1"]) > 70
    assert abs(one["top1"] - two["top1"]) < 15
    assert abs(one["flops_ratio"]["mean"] - two["flops_ratio"]["mean"]) < 0.2


def recipe_for(folder, name):
    options = {"ema": 0.9, "reestimate": 2, "batch_size": 12}
    return tiny_recipe(folder / "images", folder / name, **options)


def one_of_two(rank, folder, name, stop_after):
    """Run; the second process gets a signal after so many steps."""
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": "2", "RANK": f"{rank}"}
    os.environ.update(meet)
    before, left = Trainer._train_step, [stop_after]

    def step(trainer, *arguments):
        before(trainer, *arguments)
        left[0] -= 1
        if left[0] == 0 and rank == 1:
            os.kill(os.getpid(), signal.SIGINT)

    Trainer._train_step = step
    recipe = recipe_for(folder, name)
    if stop_after > 0:
        with pytest.raises(Interrupted):
            finetune(recipe)
    else:
        result = finetune(recipe, resume=stop_after < 0)
        torch.save(result.model.state_dict(), folder / f"{name}.{rank}.pt")


def log_of(folder):
    with (folder / "log.csv").open(newline="") as file:
        return [{k: v for k, v in r.items() if "second" not in k} for r in csv.DictReader(file)]


@pytest.mark.slow
def test_two_processes_that_stop_go_on_as_if_they_had_not(tmp_path):
    image_folders(tmp_path / "images")
    for name, stop_after in (("whole", 0), ("cut", 2), ("cut", -1)):
        in_two_processes(one_of_two, tmp_path, name, stop_after)
    states = [
        torch.load(tmp_path / f"{name}.{rank}.pt", weights_only=True)
        for name in ("whole", "cut")
        for rank in (0, 1)
    ]
    for state in states[1:]:
        assert all(torch.equal(value, states[0][name]) for name, value in state.items())
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "cut")
    assert len(log_of(tmp_path / "cut")) == 2
