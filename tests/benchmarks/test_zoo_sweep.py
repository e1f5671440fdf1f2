"""The sweep over the zoos: its rows, its limits, and its resumption after an interruption."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import zoo
import zoo_check
import zoo_coverage
from torch import nn

ROOT = Path(__file__).parents[2]


class Sum(nn.Module):
    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = weight
        self.branch = nn.Sequential(
            nn.Conv2d(3, 256, 1), nn.BatchNorm2d(256), nn.ReLU(), nn.Conv2d(256, 3, 1)
        )

    def forward(self, x):
        y = x + self.branch(x)
        return y if self.weight == 1 else x + self.weight * y


class Allocating(nn.Module):
    def forward(self, x):
        return x + torch.zeros(20 * 2**30, dtype=torch.uint8).sum()


def crash():
    os.kill(os.getpid(), signal.SIGKILL)


def exit_at_once():
    os._exit(3)


def hang():
    time.sleep(600)


def interrupt():
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(600)


MODELS = {
    "sum": Sum,
    "wide": Sum,
    "plain": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
    "deaf": lambda: Sum(0.0),
    "constant": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardtanh(1, 1.0001)),
    "greedy": Allocating,
    "crash": crash,
    "exit": exit_at_once,
    "hang": hang,
    "interrupt": interrupt,
}


class Fake:
    size_option = ""

    def names(self):
        return list(MODELS)

    def family(self, name):
        return "own"

    def input_size(self, name):
        return (3, 8, 8)

    def is_fixed(self, name):
        return False

    def part(self, name):
        return ""

    def build(self, name, **options):
        if torch.get_default_device().type == "meta":
            raise RuntimeError("not without values")
        return MODELS[name]()


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Return a function that sweeps over own models and returns the rows by model."""
    monkeypatch.setitem(zoo.LIBRARIES, "fake", Fake())

    def run(models, *more, code=0):
        arguments = ["--library", "fake", "--models", models, "--output-dir", str(tmp_path)]
        assert zoo.main([*arguments, *more]) == code
        return {row.model: row for row in zoo_coverage.read(tmp_path / "coverage.csv")}

    return run


def test_every_model_gets_its_row_whatever_it_does(sweep):
    rows = sweep("[!i]*", "--timeout", "6", "--memory", "8", code=1)
    assert {name: row.status for name, row in rows.items()} == {
        name: {"sum": "exact", "wide": "exact", "plain": "refused"}.get(name, "failed")
        for name in MODELS
        if name != "interrupt"
    }
    assert (rows["sum"].blocks, rows["sum"].split_blocks) == (1, 1)
    assert rows["sum"].deviation <= 1e-4
    assert rows["sum"].gated_share == 1
    assert "plain chains" in rows["plain"].reason
    for name, words in {
        "crash": "crash: SIGKILL",
        "exit": "crash: exit code 3",
        "hang": "timeout: more than 6 s",
        "greedy": "memory: more than 8.0 GiB",
        "deaf": "proves nothing",
        "constant": "the same for different images",
    }.items():
        assert words in rows[name].reason
    assert list(rows) == sorted(rows)


class Sized(nn.Module):
    """A block that shifts its input unless images have the size that they are converted for."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(3, 256, 1), nn.ReLU(), nn.Conv2d(256, 3, 1))

    def forward(self, x):
        x = x if x.shape[-1] > 70 else x.roll(1, -1)
        return x + self.branch(x)


def test_a_forward_that_decides_by_sizes_runs_on_images_of_its_own(monkeypatch):
    library = Fake()
    monkeypatch.setattr(library, "input_size", lambda name: (3, 72, 72))
    monkeypatch.setitem(MODELS, "sized", Sized)
    row = zoo_check.check(library, "fake", "sized")  # on images of 64 pixels, if they were taken
    assert (row.status, row.training, row.split_blocks) == ("exact", "step", 1)


def test_a_wrong_conversion_fails(sweep, monkeypatch):
    convert = zoo_check.dynamize

    def wrong(*arguments, **options):
        model, table = convert(*arguments, **options)
        with torch.no_grad():
            next(p for n, p in model.named_parameters() if "sub_blocks" in n).mul_(1.01)
        return model, table

    monkeypatch.setattr(zoo_check, "dynamize", wrong)
    row = sweep("sum", code=1)["sum"]
    assert row.status == "failed"
    assert row.deviation > 1e-4
    assert "float64" in row.reason


def test_a_split_with_other_parameters_fails(sweep, monkeypatch):
    monkeypatch.setattr(zoo_check, "PARAMETERS", -1)
    row = sweep("sum", code=1)["sum"]
    assert (row.status, row.reason) == ("failed", "the matched split's parameters are off")


@pytest.mark.slow
def test_resuming_does_what_is_missing_only(sweep, tmp_path):
    table = tmp_path / "coverage.csv"
    before = sweep("sum,wide,plain")
    other = zoo_coverage.Row("timm", "resnet18", "exact", deviation=0.0)
    kept = [before["sum"], other]
    zoo_coverage.write(table, kept)
    with table.open("a") as file:
        file.write("fake,wide,exa")  # the row that an interruption cut short
    after = sweep("sum,wide,plain", "--resume")
    assert {name: row.status for name, row in after.items()} == {
        "sum": "exact",
        "wide": "exact",
        "plain": "refused",
        "resnet18": "exact",
    }
    assert after["sum"] == before["sum"]  # its seconds too: it did not run again
    assert [row.library for row in zoo_coverage.read(table)] == ["fake"] * 3 + ["timm"]
    again = sweep("wide")
    assert set(again) == set(after)
    assert again["plain"] == after["plain"]


@pytest.mark.slow
def test_an_interruption_keeps_the_rows_and_says_how_to_go_on(sweep, capsys, tmp_path):
    done = sweep("plain,sum")
    rows = sweep("*um,plain,interrupt", "--resume", code=130)
    assert rows == done
    assert "--library fake --models '*um,plain,interrupt' --resume" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--library", "keras"],
        ["--library", "timm", "--models", "no_such_*"],
        ["--library", "timm", "--jobs", "0"],
    ],
)
def test_wrong_arguments_are_told(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        zoo.main(arguments)
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err


def run(*arguments):
    command = [sys.executable, "benchmarks/zoo/zoo.py", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.mark.slow
def test_the_command_sweeps_real_models(tmp_path):
    models = "test_resnet,test_vit,test_efficientnet,lcnet_050"
    done = run("--library", "timm", "--models", models, "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = zoo_coverage.read(tmp_path / "coverage.csv")
    assert [row.model for row in rows] == sorted(models.split(","))
    resnet = next(row for row in rows if row.model == "test_resnet")
    assert resnet.status == "exact"
    assert resnet.split_blocks == 4
    assert 0 < resnet.deviation <= 1e-4
    assert abs(resnet.parameter_ratio - 1) <= 0.01
    assert done.stdout.strip() == zoo.totals(rows)
    assert zoo.totals(rows).startswith("timm: ")
    summary = (tmp_path / "coverage.md").read_text(encoding="utf-8")
    assert "| resnet | 1 | 1 |" in summary


@pytest.mark.zoo
@pytest.mark.parametrize("library", ["torchvision", "torchvision-dense", "timm"])
def test_no_model_of_the_zoos_fails(library, tmp_path):
    done = run("--library", library, "--output-dir", tmp_path)
    rows = zoo_coverage.read(tmp_path / "coverage.csv")
    assert [(row.model, row.reason) for row in rows if row.status == "failed"] == []
    assert done.returncode == 0, done.stderr
    assert len(rows) == len(zoo.LIBRARIES[library].names())
