"""Recipes: options, their checks, YAML, and schedules of the gates."""

import math

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from dmnn_convert import ArgumentError
from dmnn_convert.cli import finetune as command
from dmnn_convert.data import DataOptions
from dmnn_convert.finetune import Recipe, built_in, read_recipe, schedule
from dmnn_convert.finetune.recipe_files import write_recipe


def gate_phase(recipe, epoch):
    return schedule.gate_phase(recipe, epoch, recipe.epochs)


def test_a_recipe_comes_back_from_yaml(tmp_path):
    recipe = Recipe(
        arch="resnet18", milestones=(3, 5), where=("stage:2",), ema=0.99, mean=(0.5,), std=(0.25,)
    )
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert Recipe().with_changes(read_recipe(tmp_path / "recipe.yaml")) == recipe


def test_every_option_is_in_one_group():
    groups = [group for group in Recipe.__mro__[1:] if vars(group).get("__annotations__")]
    own = [name for group in groups for name in vars(group)["__annotations__"]]
    assert len(groups) == 7
    assert sorted(own) == sorted(Recipe().to_dict())


def test_a_group_stands_alone_and_names_itself():
    assert DataOptions(batch_size=4).batch_size == 4
    with pytest.raises(ArgumentError, match=r"^DataOptions\(batch_size=0\): give .* at least 1"):
        DataOptions(batch_size=0)
    with pytest.raises(ArgumentError, match=r"^DataOptions\(mean=\[0\.5\], std=\[\]\): give both"):
        DataOptions(mean=(0.5,))


def test_options_that_are_gone_may_stay_in_a_file_that_never_used_them(tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text("diversity: 0.0\nshaping: 0\nlr: 0.1\n")
    assert read_recipe(file) == {"lr": 0.1}
    file.write_text("diversity: 0.5\n")
    with pytest.raises(ArgumentError, match=r"old\.yaml.*diversity=0\.5 is gone; --spread"):
        read_recipe(file)
    with pytest.raises(ArgumentError, match=r"Recipe.*shaping='a lot' is gone"):
        Recipe().with_changes({"shaping": "a lot"})


@pytest.mark.parametrize("name", built_in())
def test_recipes_of_the_package_are_complete(name):
    assert Recipe().with_changes(read_recipe(name)).epochs >= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": 0.0}, "target=0.0"),
        ({"target": 1.5}, "above 0 and at most 1"),
        ({"target": "half"}, "a number"),
        ({"epochs": 2.5}, "an int"),
        ({"epochs": True}, "an int"),
        ({"lr": float("nan")}, "a number"),
        ({"split": "even"}, "choose one of matched, exact"),
        ({"tail_norm": "own"}, "choose one of per-sub-block, shared"),
        ({"order": "random"}, "choose one of source, importance"),
        ({"certainty": 0.5}, "certainty=0.5): give a number above 0.5 and below 1; or 0"),
        ({"certainty": 1}, "at least 0 and below 1"),
        ({"init_rate": 1}, "above 0 and below 1"),
        ({"flip": 1}, "true or false"),
        ({"mean": (0.5,)}, "mean= and std="),
        ({"mean": (0.5, 0.5), "std": (0.5,)}, "a number for each channel"),
        ({"mean": ["a", "b"], "std": [1, 1]}, "mean=['a', 'b']): give a list of numbers"),
        ({"mean": [0.5], "std": [0]}, "give a list of numbers above 0"),
        ({"mean": [0.5], "std": [float("inf")]}, "give a list of numbers"),
        ({"milestones": [1.5]}, "milestones=[1.5]): give a list of ints"),
        ({"milestones": [0]}, "at least 1"),
        ({"milestones": [5, 3]}, "rising epochs"),
        ({"where": [3]}, "where=[3]): give a list of strings"),
        ({"where": "stage:2"}, "give a list of strings"),
        ({"where": ["none", "stage:2"]}, "none must be alone"),
        ({"open_epochs": 20}, "never be trained"),
        ({"lr": "1e-x"}, "a number"),
        ({"epochs": "20"}, "an int"),
        ({"lr": None}, "a number"),
        ({"anneal": None}, "a string"),
        ({"learning_rate": 1.0}, "unknown options ['learning_rate']"),
        ({"epoch": 2}, "unknown options ['epoch']. epoch: epochs?"),
    ],
)
def test_bad_options_are_named(changes, words):
    with pytest.raises(ArgumentError) as error:
        Recipe().with_changes(changes)
    assert words in str(error.value)


def test_keys_may_be_spelt_as_the_command_does(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("batch-size: 64\ngate_lr: none\n")
    assert read_recipe(file) == {"batch_size": 64, "gate_lr": "none"}


@pytest.mark.parametrize(
    ("text", "words"), [("- 1", "not options"), ("lr: [", "not valid YAML"), ("rate: 1", "unknown")]
)
def test_bad_files_are_named(tmp_path, text, words):
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(ArgumentError, match=words):
        read_recipe(file)
    with pytest.raises(ArgumentError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")


def test_numbers_may_be_written_as_yaml_takes_for_texts(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("lr: 1e-4\ngate_lr: 2E-3\nmean: [1e-1]\nstd: ['0.5']\n")
    recipe = Recipe().with_changes(read_recipe(file))
    assert (recipe.lr, recipe.gate_lr, recipe.mean, recipe.std) == (1e-4, 2e-3, (0.1,), (0.5,))


SET = {
    **{"categories": "clusters:2", "amp": "bf16", "ema": 0.9, "clip_grad": 1.0, "gate_lr": 0.1},
    **{"auto_augment": "rand-m5", "num_classes": 5, "where": ("stage:2",), "milestones": (3,)},
    **{"mean": (0.5,), "std": (0.25,), "init_rate": 0.7},
}


@pytest.mark.parametrize("nothing", [None, "none"])
def test_none_takes_away_what_was_set(nothing):
    changes = dict.fromkeys(SET, nothing)
    assert Recipe(**SET).with_changes(changes) == Recipe(gate_lr=None)
    assert Recipe(**SET).with_changes({n: ["none"] for n in ("mean", "std")}).mean == ()


def test_the_command_takes_away_what_a_file_sets(tmp_path, monkeypatch):
    write_recipe(Recipe(**SET, lr=0.3), tmp_path / "my.yaml")
    seen = []

    def stopped(recipe, *, resume, verbose):
        seen.append(recipe)
        raise ArgumentError("enough")

    monkeypatch.setattr("dmnn_convert.finetune.finetune", stopped)
    words = [f"--{name.replace('_', '-')}=none" for name in SET]
    result = CliRunner().invoke(
        command.finetune_command, ["--config", str(tmp_path / "my.yaml"), *words]
    )
    assert (seen, str(result.exception)) == ([Recipe(lr=0.3, gate_lr=None)], "enough")
    wrong = CliRunner().invoke(command.finetune_command, ["--clip-grad=much"])
    assert (wrong.exit_code, len(seen)) == (2, 1)
    assert "--clip-grad" in wrong.output


@pytest.mark.parametrize("size", ["32", "3,32,32", "3x32x32", "3×32×32", " 3, 32, 32 "])
def test_forms_of_the_input_size(size, monkeypatch):
    seen = []

    def stopped(recipe, *, resume, verbose):
        seen.append(recipe.input_size)
        raise ArgumentError("enough")

    monkeypatch.setattr("dmnn_convert.finetune.finetune", stopped)
    CliRunner().invoke(command.finetune_command, ["--input-size", size])
    assert seen == [32]


@pytest.mark.parametrize("size", ["1x32x32", "3x32x16", "3x32", "0", "-1", "a", "3xx3"])
def test_other_sizes_are_refused(size):
    result = CliRunner().invoke(command.finetune_command, ["--input-size", size])
    assert result.exit_code == 2
    assert "give 224, 3x224x224 or 3,224,224." in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("options", "alpha"),
    [
        ({"checkpoint": "a.pth"}, 0.5),
        ({"pretrained": True}, 0.5),
        ({"checkpoint": "a.pth", "num_classes": 3}, 0.0),  # the classifier may be new
        ({"checkpoint": "a.pth", "weights": "random"}, 0.0),
        ({}, 0.0),
        ({"teacher": "resnet18", "teacher_checkpoint": "b.pth", "num_classes": 3}, 0.5),
        ({"checkpoint": "a.pth", "distill": 0.0}, 0.0),
        ({"distill": 0.9}, 0.9),
    ],
)
def test_a_trained_source_that_keeps_its_classes_teaches(options, alpha):
    assert Recipe(**options).alpha == alpha


def test_a_dense_network_has_no_gates_to_open():
    assert Recipe(n=0, epochs=2, open_epochs=5).dense


def test_differences_are_listed():
    assert Recipe(lr=0.1).differences(Recipe(lr=0.2)) == ["lr: 0.1, not 0.2"]


def test_the_target_falls_along_half_a_cosine():
    recipe = Recipe(epochs=10, open_epochs=2, target=0.5, anneal="cosine", anneal_from=1.0)
    assert gate_phase(recipe, 1.9) == (True, 1.0, 1.0)
    assert gate_phase(recipe, 2.0).target == 1.0
    assert gate_phase(recipe, 4.0).target == pytest.approx(0.75)  # half of the four epochs
    assert gate_phase(recipe, 3.0).target == pytest.approx(
        1 - 0.5 * (1 - math.cos(math.pi / 4)) / 2
    )
    assert gate_phase(recipe, 6.0).target == pytest.approx(0.5)
    assert gate_phase(recipe, 9.9).target == pytest.approx(0.5)


def test_linear_annealing_and_none():
    linear = Recipe(epochs=8, anneal="linear", anneal_epochs=4.0, target=0.2, anneal_from=1.0)
    assert gate_phase(linear, 1.0).target == pytest.approx(0.8)
    assert gate_phase(Recipe(anneal="none"), 0.0) == (False, 0.5, 1.0)


def test_the_target_falls_from_the_rate_that_gates_start_with():
    recipe = Recipe(epochs=8, anneal="linear", anneal_epochs=4.0, init_rate=0.9, target=0.5)
    assert [gate_phase(recipe, at).target for at in (0, 2, 4)] == pytest.approx([0.9, 0.7, 0.5])
    assert gate_phase(recipe.with_changes({"target": 0.95}), 0.0).target == 0.95


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ({}, 0.5),
        ({"target": 0.3}, 0.3),
        ({"target": 1.0}, 0.9),  # at which no gate can start
        ({"init_rate": 0.7}, 0.7),
        ({"certainty": 0.0}, 0.9),
        ({"certainty": 0.0, "target": 0.3, "init_rate": 0.6}, 0.6),
    ],
)
def test_gates_start_at_the_target_unless_they_start_alike(options, rate):
    recipe = Recipe(**options)
    assert recipe.start_rate == rate
    assert gate_phase(recipe, 0.0).target == max(rate, recipe.target)
    assert gate_phase(recipe, recipe.epochs).target == recipe.target


def test_gates_that_start_at_the_target_have_nothing_to_anneal():
    assert {gate_phase(Recipe(target=0.3), at / 2).target for at in range(41)} == {0.3}


@pytest.mark.parametrize("name", built_in())
def test_the_papers_sub_blocks_start_alike(name):
    recipe = Recipe().with_changes(read_recipe(name))
    assert (recipe.order, recipe.certainty, recipe.start_rate) == ("source", 0, 0.9)


def test_the_temperature_falls_geometrically():
    recipe = Recipe(epochs=10, tau=4.0, tau_end=1.0)
    assert [gate_phase(recipe, at).tau for at in (0, 5, 10)] == pytest.approx([4.0, 2.0, 1.0])


@given(
    epoch=st.floats(0, 30),
    target=st.floats(0.01, 1),
    open_epochs=st.floats(0, 5),
    anneal=st.sampled_from(("none", "linear", "cosine")),
)
def test_the_target_stays_between_r_and_one(epoch, target, open_epochs, anneal):
    recipe = Recipe(target=target, open_epochs=open_epochs, anneal=anneal)
    assert target - 1e-9 <= gate_phase(recipe, epoch).target <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 3, "anneal_epochs": 10}, "10 epochs or more"),
        ({"epochs": 3, "anneal_epochs": 2, "open_epochs": 2}, "4 epochs or more"),
        ({"anneal_from": 0.2, "target": 0.5}, "--anneal-from at or above"),
    ],
)
def test_a_target_that_annealing_would_not_reach_is_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        Recipe(**options)
    assert Recipe(**options, anneal="none").anneal == "none"
    assert Recipe(**options, n=0).dense
