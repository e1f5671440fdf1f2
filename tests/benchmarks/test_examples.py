"""Every example runs for a step or two, started as a user starts it."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT.parent / "shared" / "checkpoints"


def run(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def images(tmp_path):
    for part, count in (("train", 70), ("test", 4)):
        for label in range(10):
            folder = tmp_path / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count if label < 2 else 2):
                to_pil_image(torch.rand(3, 32, 32)).save(folder / f"{i}.jpg")
    return tmp_path


@pytest.mark.slow
def test_digits_prints_accuracy_and_macs_side_by_side():
    out = run("examples/digits.py", "--max-steps", 2)
    assert "fine-tuned, dynamic" in out
    assert out.count("%") == 3
    assert "different paths" in out


@pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="the pretrained CIFAR ResNets are not here")
@pytest.mark.slow
def test_quickstart_converts_exactly_and_fine_tunes(images):
    big, small = (next(CHECKPOINTS.glob(f"resnet{n}-*.th")) for n in (32, 20))
    out = run(
        *("examples/quickstart.py", "--data", images, "--checkpoint", big, "--finetune", small),
        *("--max-steps", 1, "--workers", 0),
    )
    before, after = (
        line.split()[-2]
        for line in out.splitlines()
        if "before conversion" in line or "gates on" in line
    )
    assert before == after
    assert "whole network's FLOPs ratio" in out


def needs(package):
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
LOOPS = [
    pytest.param("accelerate_loop.py", marks=needs("accelerate")),
    pytest.param("fabric_loop.py", marks=needs("lightning_fabric")),
]
IN_TWO_PROCESSES = [
    pytest.param(
        (*TORCHRUN, "examples/accelerate_loop.py"), id="accelerate", marks=needs("accelerate")
    ),
    pytest.param(
        ("examples/fabric_loop.py", "--accelerator", "cpu", "--devices", 2),
        id="fabric",
        marks=needs("lightning_fabric"),
    ),
]


@pytest.mark.parametrize("script", LOOPS)
@pytest.mark.slow
def test_other_training_loops_fine_tune_and_save_if_asked(script, tmp_path):
    output = tmp_path / "dynamic"
    options = ("--max-steps", 2, "--target", 0.6, "--output", output)
    out = run(f"examples/{script}", *options)
    assert out.count("processes: 1; top-1") == 1
    assert "of 359 test images" in out
    assert "(target 0.6)" in out
    assert (output / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", IN_TWO_PROCESSES)
def test_other_training_loops_run_in_two_processes(command):
    out = run(*command, "--max-steps", 2, CUDA_VISIBLE_DEVICES="")  # gloo
    assert out.count("top-1") == 1  # the first process alone speaks
    assert "processes: 2; top-1" in out
    assert "of 359 test images" in out  # every one of them, and none twice


@pytest.mark.slow
def test_a_detector_is_trained_and_evaluated():
    text = run("examples/detection.py", "--steps", "3", OMP_NUM_THREADS="1")
    assert re.search(r"loss \d+\.\d\d -> \d+\.\d\d", text)
    assert "of the squares; backbone at" in text


@pytest.mark.parametrize("page", ["README.md", "docs/conversion.md"])
@pytest.mark.slow
def test_the_first_snippet_of_a_page_runs(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    out = run("-c", text.split("```python\n")[1].split("```")[0])
    assert "controllers" in out
    assert "tensor" in out
