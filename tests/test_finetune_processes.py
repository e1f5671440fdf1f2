"""Fine-tuning in two processes that torchrun starts."""

import json
import subprocess
import sys

import pytest
from finetune_data import NET, image_folders


def launch(folder, output, *options):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "dmnn_convert", "finetune", f"--arch={NET}", f"--data={folder}"),
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
    assert done.stdout.count("top-1") == 1
    described = json.loads((output / "result.json").read_text())
    assert described["evaluation"]["images"] == 15
    assert (output / "last.pt").is_file()
    again = launch(folder, output, "--ema=0.9", "--open-epochs=1", "--resume")
    assert again.returncode == 0, again.stderr[-2000:]


@pytest.mark.slow
def test_norms_over_processes_need_gpus(tmp_path):
    done = launch(image_folders(tmp_path / "images"), tmp_path / "run", "--sync-bn")
    assert done.returncode != 0
    assert "on GPUs only" in done.stderr
