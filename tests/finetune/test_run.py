"""A run of fine-tuning, from folders of images to a network that loads again."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner
from finetune_data import NET, image_folders, tiny_recipe
from quick import one_in

from dmnn_convert import ArgumentError, CheckpointError, load
from dmnn_convert.cli.finetune import finetune_command
from dmnn_convert.errors import TrainingError
from dmnn_convert.evaluation.scores import Scores
from dmnn_convert.finetune import LAST, Interrupted, Recipe, finetune, read_recipe
from dmnn_convert.finetune.state import read_state
from dmnn_convert.finetune.trainer import Trainer
from dmnn_convert.io import zoo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = image_folders(tmp_path_factory.mktemp("images"))
    torch.save(zoo.build(NET).state_dict(), root / "tiny.pth")
    return root


def recipe_for(folder, output, **changes):
    return tiny_recipe(folder, output, **{"checkpoint": str(folder / "tiny.pth"), **changes})


def logged(folder):
    """Return the log's rows, but for what a clock measured."""
    with (folder / "log.csv").open(newline="") as file:
        return [{k: v for k, v in r.items() if "second" not in k} for r in csv.DictReader(file)]


def weights(folder):
    return torch.load(folder / LAST, weights_only=True)["trainer"]


def equal(ours, theirs):
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return ours == theirs


def test_a_run_ends_in_a_network_that_loads(folder, tmp_path):
    recipe = recipe_for(folder, tmp_path / "run", distill=0.5, ema=0.9, categories="clusters:2")
    result = finetune(recipe)
    out = tmp_path / "run"
    described = json.loads((out / "result.json").read_text())
    assert described["evaluation"]["images"] == 15
    assert described["evaluation"]["top1"] == result.evaluation.top1
    assert Recipe().with_changes(read_recipe(out / "recipe.yaml")) == recipe.settled()
    rows = logged(out)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["target"]) == 0.5
    assert float(rows[0]["resource"]) > 0
    assert float(rows[0]["distillation"]) > 0
    assert float(rows[0]["category"]) > 0
    model, _ = load(out / "final", model=zoo.build(NET))
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), result.model(images))


@pytest.mark.parametrize(
    "changes",
    one_in(
        3,
        [
            {"n": 0},
            {"n": 1, "rates": "network"},
            {"n": 4, "chained": False, "rates": "none"},
            {"open_epochs": 0.5, "anneal": "none"},
            {"mixup": 0.2, "cutmix": 0.5, "smoothing": 0.1, "categories": "clusters:2"},
            {"amp": "bf16", "channels_last": True, "clip_grad": 1.0, "opt": "adamw", "lr": 1e-3},
            {"sched": "multistep", "milestones": (1,), "warmup_epochs": 0.0, "weights": "random"},
            {"reestimate": 2, "normalized": True},
            {"tail_norm": "shared", "reestimate": 2},
            {"order": "source", "certainty": 0.0},
            {"split": "exact", "auto_augment": "rand-m5-n2", "erase": 0.3, "gate_lr": 0.5},
        ],
    ),
    ids=lambda changes: "-".join(changes),
)
def test_every_switch_trains(folder, tmp_path, changes):
    result = finetune(recipe_for(folder, tmp_path / "run", epochs=1, **changes))
    assert result.evaluation.images == 15
    assert result.evaluation.nan_images == 0


COMMAND = (sys.executable, "-m", "dmnn_convert", "finetune")
SEVEN = (
    f"import sys; sys.path.insert(0, {os.path.dirname(NET.split(':')[0])!r})\n"
    "from tiny_net import tiny\n\n\ndef seven(num_classes=7):\n    return tiny(num_classes)\n"
)


def options_of(recipe):
    return [
        f"--{name.replace('_', '-')}={value}"
        for name, value in recipe.to_dict().items()
        if value not in (None, [], Recipe().to_dict()[name])
    ]


OPTIONS = {"epochs": 4, "ema": 0.9, "distill": 0.3, "mixup": 0.2, "categories": "clusters:2"}


def test_the_command_prints_the_result_as_json(folder, tmp_path):
    options = options_of(recipe_for(folder, tmp_path / "run", epochs=1))
    done = CliRunner().invoke(finetune_command, [*options, "--format", "json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((tmp_path / "run" / "result.json").read_text())


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_never_stopped(folder, tmp_path):
    finetune(recipe_for(folder, tmp_path / "whole", **OPTIONS))
    cut = recipe_for(folder, tmp_path / "cut", save_minutes=1e-9, **OPTIONS)
    # As many threads as the tests have: sums over threads round differently.
    alike = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([*COMMAND, *options_of(cut)], stderr=subprocess.DEVNULL, env=alike)
    last = tmp_path / "cut" / LAST
    while not (last.exists() and weights(tmp_path / "cut")["step"] >= 2):
        assert running.poll() is None
        time.sleep(0.01)
    running.kill()
    running.wait()
    stopped = weights(tmp_path / "cut")
    finetune(cut, resume=True)
    assert (stopped["epoch"], stopped["step"]) < (4, 0)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    ours, theirs = (logged(tmp_path / name) for name in ("whole", "cut"))
    assert ours == theirs


def test_a_signal_saves_the_state(folder, tmp_path):
    recipe = recipe_for(folder, tmp_path / "run")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="--resume"), _signal_after_steps(2):
        finetune(recipe)
    assert signal.getsignal(signal.SIGINT) is before
    assert weights(tmp_path / "run")["step"] == 2
    assert finetune(recipe, resume=True).evaluation.images == 15


class _after_steps:
    """Do something to a trainer after so many steps."""

    def __init__(self, steps, happens):
        self.steps, self.happens = steps, happens

    def __enter__(self):
        self.before, left = Trainer._train_step, [self.steps]

        def step(trainer, *arguments):
            self.before(trainer, *arguments)
            left[0] -= 1
            if left[0] == 0:
                self.happens(trainer)

        Trainer._train_step = step

    def __exit__(self, *error):
        Trainer._train_step = self.before


def _signal_after_steps(steps):
    return _after_steps(steps, lambda _: os.kill(os.getpid(), signal.SIGINT))


@pytest.mark.slow
def test_a_run_stopped_after_the_last_step_of_an_epoch_goes_on(folder, tmp_path):
    whole = recipe_for(folder, tmp_path / "whole", reestimate=2)
    finetune(whole)
    cut = recipe_for(folder, tmp_path / "cut", reestimate=2)
    with pytest.raises(Interrupted), _signal_after_steps(6):
        finetune(cut)
    assert weights(tmp_path / "cut")["step"] == 6
    found = finetune(cut, resume=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    again = finetune(whole, resume=True)
    assert equal(found.model.state_dict(), again.model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_saves_the_state(folder, tmp_path, number):
    """As a terminal's Ctrl-C goes to loader processes too."""
    recipe = recipe_for(folder, tmp_path / "run", workers=2, epochs=400)
    running = subprocess.Popen(
        [*COMMAND, *options_of(recipe)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (tmp_path / "run" / "log.csv").exists():
        assert running.poll() is None
        time.sleep(0.05)
    os.killpg(running.pid, number)
    _, words = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "--resume" in words.splitlines()[-1]


def test_a_new_classifier_teaches_nothing(folder, tmp_path):
    torch.save(zoo.build(NET, num_classes=7).state_dict(), tmp_path / "seven.pth")
    file = tmp_path / "seven.py"
    file.write_text(SEVEN)
    recipe = recipe_for(folder, tmp_path / "run", arch=f"{file}:seven", num_classes=3)
    recipe = recipe.with_changes({"checkpoint": str(tmp_path / "seven.pth")})
    for changes in ({"distill": 0.5}, {"categories": "clusters:2"}):
        with pytest.raises(ArgumentError, match="nothing to learn from it"):
            finetune(recipe.with_changes(changes))


def test_another_configuration_is_refused(folder, tmp_path):
    recipe = recipe_for(folder, tmp_path / "run", epochs=1)
    finetune(recipe)
    with pytest.raises(ArgumentError, match="already holds a run"):
        finetune(recipe)
    with pytest.raises(ArgumentError, match=r"lr: 0\.2, not 0\.05"):
        finetune(recipe.with_changes({"lr": 0.2}), resume=True)
    with pytest.raises(ArgumentError, match="start without --resume"):
        finetune(recipe_for(folder, tmp_path / "other"), resume=True)
    (tmp_path / "run" / LAST).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="damaged"):
        read_state(tmp_path / "run", recipe)


def test_other_data_are_refused(folder, tmp_path):
    finetune(recipe_for(folder, tmp_path / "run", epochs=1))
    other = image_folders(tmp_path / "images", train=11)
    recipe = recipe_for(folder, tmp_path / "run", epochs=1, data=str(other))
    with pytest.raises(ArgumentError, match=r"training images: 33, not 36\."):
        finetune(recipe, resume=True)


KILLS_LOADERS = """
import json, multiprocessing, sys
from dmnn_convert.finetune import Recipe, TrainingError, finetune
from dmnn_convert.finetune.trainer import Trainer

def step(trainer, *arguments, before=Trainer._train_step):
    before(trainer, *arguments)
    if trainer.step == 2:
        for loader in multiprocessing.active_children():
            loader.kill()

Trainer._train_step = step
try:
    finetune(Recipe().with_changes(json.loads(sys.argv[1])))
except TrainingError as error:
    sys.exit(str(error))
"""


@pytest.mark.slow
def test_a_loader_process_that_dies_is_told_and_the_run_goes_on(folder, tmp_path):
    # In a process of its own: PyTorch tells of a dead loader process in the midst of anything.
    recipe = recipe_for(folder, tmp_path / "run", workers=1, save_minutes=1e-9)
    command = [sys.executable, "-c", KILLS_LOADERS, json.dumps(recipe.to_dict())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "loader process died" in done.stderr.splitlines()[-1]
    assert 1 <= weights(tmp_path / "run")["step"] <= 3
    assert finetune(recipe, resume=True).evaluation.images == 15


def test_broken_weights_are_not_kept(folder, tmp_path):
    def broken(trainer):
        with torch.no_grad():
            next(trainer.model.parameters())[0] = torch.nan

    recipe = recipe_for(folder, tmp_path / "run", save_minutes=1e-9)
    told = pytest.raises(TrainingError, match=r"0\.weight.*after step 3 of epoch 1")
    with told, _after_steps(3, broken):
        finetune(recipe)
    kept = weights(tmp_path / "run")
    assert kept["step"] == 2
    assert all(value.isfinite().all() for value in kept["model"].values())


def test_a_model_that_finds_no_room_leaves_the_run_to_go_on(folder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    recipe = recipe_for(folder, tmp_path / "run", epochs=1)
    with monkeypatch.context() as patched:
        patched.setattr("dmnn_convert.io.weights.save_file", full)
        with pytest.raises(CheckpointError, match="No space left"):
            finetune(recipe)
    assert not (tmp_path / "run" / "final").exists() or not any(
        (tmp_path / "run" / "final").iterdir()
    )
    result = finetune(recipe, resume=(tmp_path / "run" / LAST).exists())
    assert result.evaluation.images == 15


@pytest.mark.slow
def test_mixed_precision_on_the_cpu_learns(folder, tmp_path):
    recipe = recipe_for(folder, tmp_path / "run", amp="bf16", epochs=10, batch_size=12, lr=0.1)
    result = finetune(recipe)
    losses = [float(row["classification"]) for row in logged(tmp_path / "run")]
    assert losses[-1] < 0.8 * losses[0]
    assert result.evaluation.top1 > 60


def test_warnings_are_lines_and_results(folder, tmp_path, capsys):
    result = finetune(recipe_for(folder, tmp_path / "run", epochs=1, target=0.1, init_rate=0.9))
    described = json.loads((tmp_path / "run" / "result.json").read_text())
    assert described["warnings"] == list(result.warnings)
    shown = [line for line in capsys.readouterr().err.splitlines() if "warning: epoch 1: " in line]
    assert len(shown) == len(result.warnings) > 0
    assert "above the target 0.1" in shown[-1]


def test_a_loss_that_is_no_number_stops(folder, tmp_path):
    with pytest.raises(TrainingError, match="--clip-grad"):
        finetune(recipe_for(folder, tmp_path / "run", lr=1e30))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": None}, "--arch"),
        ({"arch": f"{NET}", "num_classes": 5}, "5 classes apart, but the data has 3"),
        ({"opt": "none_such"}, "no such optimiser"),
        ({"sched": "none_such"}, "no such schedule"),
        ({"sched": "plateau"}, "depends on results"),
        ({"sched": "none"}, "constant rate"),
        ({"auto_augment": "wild"}, "no such policy"),
        ({"weights": "random", "categories": "clusters:2"}, "nothing to learn from it"),
        ({"amp": "fp16"}, "use amp=bf16"),
        ({"device": "toaster"}, "toaster"),
        ({"pretrained": True}, "not both"),
        ({"checkpoint": None, "distill": 0.5}, "no trained source"),
        ({"teacher": NET, "teacher_checkpoint": "none.pth"}, "none.pth"),
    ],
)
def test_bad_recipes_are_refused(folder, tmp_path, changes, words):
    with pytest.raises((ArgumentError, CheckpointError)) as error:
        finetune(recipe_for(folder, tmp_path / "run", **changes))
    assert words in str(error.value)


def test_a_category_file_that_misses_a_class_is_refused(folder, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"red": "warm", "blue": "cold"}')
    with pytest.raises(ArgumentError, match="1 of 3 classes have no category: 'green'"):
        finetune(recipe_for(folder, tmp_path / "run", categories=str(file)))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [5, pytest.param(7, marks=pytest.mark.slow)])
def test_odd_batches_with_broken_images_are_mixed_and_counted(folder, tmp_path, batch_size):
    shutil.copytree(folder, tmp_path / "images")
    for part in ("train", "test"):
        broken = tmp_path / "images" / part / "red" / "3.png"
        broken.write_bytes(broken.read_bytes()[:40])
    options = {"mixup": 0.2, "batch_size": batch_size, "on_bad_image": "skip"}
    recipe = recipe_for(tmp_path / "images", tmp_path / "run", checkpoint=None, **options)
    finetune(recipe.with_changes({"epochs": 4}))
    described = json.loads((tmp_path / "run" / "result.json").read_text())
    assert described["bad_test_images"] == 1
    assert described["bad_images"] >= 1
    assert described["evaluation"]["images"] == 14


def test_another_number_of_classes_replaces_the_classifier(folder, tmp_path):
    source = zoo.build(NET, num_classes=7)
    torch.save(source.state_dict(), tmp_path / "seven.pth")
    file = tmp_path / "seven.py"
    file.write_text(SEVEN)
    recipe = recipe_for(folder, tmp_path / "run", epochs=1, arch=f"{file}:seven")
    recipe = recipe.with_changes({"checkpoint": str(tmp_path / "seven.pth")})
    with pytest.raises(ArgumentError, match="--num-classes 3"):
        finetune(recipe)
    result = finetune(recipe.with_changes({"num_classes": 3, "output": str(tmp_path / "three")}))
    assert len(result.evaluation.classes) == 3
    kept = dict(result.model.named_parameters())["0.weight"]
    assert kept.shape == source.state_dict()["0.weight"].shape


@pytest.mark.slow
def test_another_network_can_be_the_teacher(folder, tmp_path):
    teacher = zoo.build(NET)
    with torch.no_grad():
        teacher[-1].bias.copy_(torch.tensor([50.0, 0.0, 0.0]))  # the first class, whatever it sees
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    taught = {"teacher": NET, "teacher_checkpoint": str(tmp_path / "teacher.pth")}
    recipe = recipe_for(folder, tmp_path / "run", n=0, distill=1.0, epochs=8, lr=0.5, **taught)
    network = finetune(recipe).model
    with torch.no_grad():
        assert (network(torch.randn(20, 3, 8, 8)).argmax(1) == 0).all()
    with pytest.raises(ArgumentError, match="both teacher= and teacher_checkpoint="):
        Recipe(teacher=NET)


def test_steps_can_end_a_run_in_the_middle_of_an_epoch(folder, tmp_path):
    changes = {"epochs": 5, "max_steps": 8, "seed": 3}  # of 6 steps an epoch
    recipe = recipe_for(folder, tmp_path / "run", **changes)
    finetune(recipe)
    rows = logged(tmp_path / "run")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[-1]["target"]) == 0.5  # schedules end with the steps
    assert 0 < float(rows[-1]["lr"]) < recipe.lr / 10
    assert (tmp_path / "run" / "best" / "config.json").exists()
    # Stopped within the last epoch and resumed, it is the same run.
    again = recipe_for(folder, tmp_path / "again", **changes)
    with pytest.raises(Interrupted), _signal_after_steps(7):
        finetune(again)
    assert (tmp_path / "again" / "best" / "config.json").exists()  # from the first epoch on
    finetune(again, resume=True)
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "again"))


def test_steps_that_leave_no_time_for_the_gates_are_refused(folder, tmp_path):
    recipe = recipe_for(folder, tmp_path / "run", max_steps=3, open_epochs=0.5)
    with pytest.raises(ArgumentError, match=r"max_steps=3.*never be trained"):
        finetune(recipe)


def test_the_best_network_is_there_however_bad_it_is(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dmnn_convert.evaluation.scores.Scores.add", _all_wrong)
    assert finetune(recipe_for(folder, tmp_path / "run")).evaluation.top1 == 0
    assert (tmp_path / "run" / "best" / "model.safetensors").exists()


_add = Scores.add


def _all_wrong(self, logits, labels):
    worst = torch.nn.functional.one_hot(labels, logits.shape[1])
    _add(self, -worst.float(), labels)


@pytest.mark.slow
def test_an_epoch_is_a_line_in_a_log_unless_it_is_not_wanted(folder, tmp_path):
    recipe = recipe_for(folder, tmp_path / "run", epochs=1)
    done = CliRunner().invoke(finetune_command, options_of(recipe))
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("epoch 1/1: loss ")
    assert "\r" not in done.output
    recipe = recipe_for(folder, tmp_path / "quiet", epochs=1)
    done = CliRunner().invoke(finetune_command, [*options_of(recipe), "-q"])
    assert done.exit_code == 0, done.output
    assert "epoch 1/1: loss" not in done.stderr
    assert "top-1" in done.stdout
