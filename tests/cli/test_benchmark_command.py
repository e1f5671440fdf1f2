"""`dmnn-convert benchmark`: its figures, through the command's real entry point."""

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from finetune_data import image_folders
from nets import cifar_resnet20

from dmnn_convert import dynamize, force_gates, record_paths, save
from dmnn_convert.cli.convert import cli
from dmnn_convert.report import as_table
from dmnn_convert.runtime import Benchmark, Timing, is_installed

ROOT = Path(__file__).parents[2]
NET = f"{ROOT / 'examples' / 'cifar_resnet.py'}:resnet20"
TORCH = ("--engine", "torch")  # what engines give is in tests/runtime/test_engines.py
FORMS = {"dense, eager", "dense, packed", "masked", "skipping", "prepared", "static"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DMNN_CONVERT_CACHE", str(tmp_path / "autotune.json"))


def run(*words):
    return CliRunner().invoke(cli, ["benchmark", *map(str, words)])


@pytest.mark.slow
def test_prints_every_form_at_every_rate(tmp_path):
    picture = tmp_path / "speed.png"
    words = ("--arch", NET, "--input-size", "3x32x32", "--rounds", 2, "--batch", 1, "--batch", 3)
    done = run(*words, *TORCH, "--rate", 0.5, "--rate", 1, "--format", "json", "--plot", picture)
    assert done.exit_code == 0, done.output
    timings = json.loads(done.stdout)
    for batch, forms in ((1, FORMS), (3, FORMS | {"dense, apart"})):
        assert {t["form"] for t in timings if t["batch"] == batch} == forms
    assert {t["batch"] for t in timings} == {1, 3}
    for t in timings:
        assert t["milliseconds"] > 0
        if t["form"] == "prepared":
            low, high = (0.35, 0.75) if t["rate"] == "0.5" else (1.0, 1.001)  # with controllers
            assert low <= t["flops_ratio"] <= high
            assert (t["saved"] is None) == (t["rate"] == "1")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_times_own_gates_on_real_images(tmp_path):
    model = dynamize(cifar_resnet20(), 2, input_size=(3, 32, 32)).model
    save(model, tmp_path / "saved")
    data = image_folders(tmp_path / "data", side=32)
    words = ("--converted", tmp_path / "saved", "--arch", NET, "--data", data, "--rounds", 2)
    done = run(*words, *TORCH, "--batch", 2)
    assert done.exit_code == 0, done.output
    assert "own gates" in done.output
    assert "prepared" in done.output


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    data = image_folders(tmp_path / "data", side=32)
    broken = data / "test" / "red" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    done = run("--arch", NET, "--input-size", 32, "--data", data, "--batch", 15)
    assert done.exit_code != 0
    assert str(broken) in str(done.exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--arch or --converted"),
        (("--arch", NET, "--batch", 0), "--batch 0"),
        (("--arch", NET, "--rate", 1.5), "between 0 and 1"),
        (("--arch", NET, "--rounds", 1), "2 or more"),
        (("--arch", NET, "--threads", 0), "1 or more"),
        (("--converted", "x", "-N", 3, "--tail-norm", "shared"), "-N, --tail-norm: a saved"),
    ],
)
def test_bad_usage(words, said):
    done = run(*words)
    assert done.exit_code == 2
    assert said in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "nonsense"), "is not available"),
        pytest.param(
            ("--engine", "openvino"),
            'pip install "dmnn-convert[openvino]"',
            marks=pytest.mark.skipif(is_installed("openvino"), reason="has that engine"),
        ),
        pytest.param(
            ("--device", "cuda"),
            "is not available",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has that device"),
        ),
        (("--plot", "speed.nonsense", "--rounds", 2, "--rate", 1), "speed.nonsense"),
        (("--plot", "none/speed.png", "--rounds", 2, "--rate", 1), "no folder none"),
    ],
)
def test_bad_input(monkeypatch, capsys, words, said):
    from dmnn_convert.cli import main

    arguments = ["dmnn-convert", "benchmark", "--arch", NET, "--input-size", "32", *map(str, words)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert "dense, eager" not in shown.out
    assert said in shown.err


@pytest.mark.slow
def test_flops_are_those_of_the_paths_and_ratios_follow(monkeypatch):
    source = cifar_resnet20().eval()
    model, table = dynamize(source, 2, input_size=(3, 32, 32))
    bench = Benchmark(source, model.eval(), table, [torch.randn(2, 3, 32, 32)], engines=())
    timings = {(t.form, t.rate): t for t in bench.run((0.5,), rounds=12, seed=3)}
    generator = torch.Generator().manual_seed(3)
    drawn = [(torch.rand(2, 18, generator=generator) < 0.5).float() for _ in range(4)]
    with record_paths(model) as paths:
        for gates in drawn:
            with force_gates(model, gates), torch.no_grad():
                model(torch.randn(2, 3, 32, 32))
    expected = float(table.network_flops(paths.gates).mean()) / table.dense_total
    prepared = timings["prepared", "0.5"]
    fastest = min(t.milliseconds for t in timings.values() if t.form.startswith("dense"))
    assert prepared.flops_ratio == pytest.approx(expected, rel=1e-6)
    assert prepared.time_ratio == pytest.approx(prepared.milliseconds / fastest)
    assert prepared.saved == pytest.approx((1 - prepared.time_ratio) / (1 - prepared.flops_ratio))
    assert timings["static", "0.5"].flops_ratio == pytest.approx(expected, abs=0.05)


def test_the_table_has_a_row_for_each_timing():
    timing = Timing("prepared", "0.5", 1, 2.0, 0.1, 0.5, 0.6, 0.4, 0.8, 0.5, 4)
    dense = Timing("dense, packed", "", 1, 2.0, 0.1, 1.0, 1.0, 0.7, None)
    head, row, last = as_table([timing, dense]).splitlines()
    assert head.split()[-3:] == ["saved", "on", "paths"]
    words = " ".join(row.split())
    assert words == "prepared 0.5 1 2.00 0.10 0.500 0.600 1.200 0.400 80 % 0.500 4"
    assert last.split()[-1] == "0.700"
