"""Recipes: options, their checks, YAML, and schedules of the gates."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmnn_convert import ArgumentError
from dmnn_convert.finetune.recipe import Recipe, built_in, read_recipe, write_recipe
from dmnn_convert.finetune.schedule import gate_phase


def test_a_recipe_comes_back_from_yaml(tmp_path):
    recipe = Recipe(
        arch="resnet18", milestones=(3, 5), where=("stage:2",), ema=0.99, mean=(0.5,), std=(0.25,)
    )
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert Recipe().with_changes(read_recipe(tmp_path / "recipe.yaml")) == recipe


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
        ({"flip": 1}, "true or false"),
        ({"mean": (0.5,)}, "mean= and std="),
        ({"learning_rate": 1.0}, "unknown options ['learning_rate']"),
    ],
)
def test_bad_options_are_named(changes, words):
    with pytest.raises(ArgumentError) as error:
        Recipe().with_changes(changes)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"), [("- 1", "not options"), ("lr: [", "no YAML"), ("rate: 1", "unknown")]
)
def test_bad_files_are_named(tmp_path, text, words):
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(ArgumentError, match=words):
        read_recipe(file)
    with pytest.raises(ArgumentError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")


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
