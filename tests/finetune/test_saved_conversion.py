"""Fine-tuning of a conversion that was saved before."""

import json

import pytest
import torch
from finetune_data import NET, image_folders

from dmnn_convert import ArgumentError, CheckpointError, GateConfig, dynamize, save
from dmnn_convert.finetune import Recipe, finetune, read_recipe
from dmnn_convert.finetune.network import build_networks
from dmnn_convert.finetune.saved_conversion import resolved
from dmnn_convert.io import zoo
from dmnn_convert.nn import multi_path_blocks

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = image_folders(tmp_path_factory.mktemp("images"))
    source = zoo.build(NET)
    torch.save(source.state_dict(), root / "tiny.pth")
    gate = GateConfig(hidden=16, init_rate=0.7)
    for name, heads in (("plain", None), ("heads", 2)):
        model, _ = dynamize(source, 4, gate=gate, input_size=(3, 8, 8), num_categories=heads)
        save(model, root / name, arch=NET, category_heads=heads is not None)
    return root


def recipe_for(folder, output="run", name="plain", **changes):
    return Recipe(
        arch=NET,
        converted=str(folder / name),
        data=str(folder),
        epochs=1,
        batch_size=6,
        workers=0,
        device="cpu",
        output=str(output),
    ).with_changes(changes)


def test_a_saved_conversion_is_trained_and_told_of(folder, tmp_path):
    recipe = recipe_for(folder, tmp_path / "run")
    result = finetune(recipe)
    blocks = multi_path_blocks(result.model)
    assert {len(block.sub_blocks) for block in blocks} == {4}
    kept = Recipe().with_changes(read_recipe(tmp_path / "run" / "recipe.yaml"))
    assert (kept.n, kept.hidden, kept.init_rate, kept.input_size) == (4, 16, 0.7, 8)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["bad_test_images"] == 0
    finetune(kept, resume=True)  # what was written says the same as what was asked
    again = recipe_for(tmp_path / "run", tmp_path / "again", "final", data=str(folder), target=0.4)
    assert finetune(again).evaluation.images == 15


def test_it_is_brought_nearer_to_a_source_that_it_still_is(folder, tmp_path):
    taught = {"checkpoint": str(folder / "tiny.pth"), "distill": 0.5}
    networks = build_networks(resolved(recipe_for(folder, **taught)), CLASSES)
    assert networks.at_source
    assert not build_networks(resolved(recipe_for(folder)), CLASSES).at_source
    with torch.no_grad():
        networks.model[0].weight.add_(0.1)
    save(networks.model, tmp_path / "trained")
    recipe = recipe_for(tmp_path, name="trained", **taught)
    assert not build_networks(resolved(recipe), CLASSES).at_source
    assert finetune(recipe.with_changes({"data": str(folder), "output": str(tmp_path / "run")}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n": 3}, ("n=3", "with 4", "convert again")),
        ({"n": 0}, ("n=0", "with 4")),
        ({"split": "exact"}, ("split='exact'", "with 'matched'")),
        ({"where": ("stage:1",)}, ("where=", "leave --where out")),
        ({"hidden": 8}, ("hidden=8", "with 16")),
        ({"chained": False}, ("chained=False", "with True")),
        ({"normalized": True}, ("normalized=True", "with False")),
        ({"init_rate": 0.5}, ("init_rate=0.5", "with 0.7")),
        ({"certainty": 0.8}, ("certainty=0.8", "with 0.0")),
        ({"input_size": 16}, ("input_size=16", "leave --input-size out")),
        ({"weights": "random"}, ("weights='random'", "with 'inherited'")),
        ({"arch": None}, ("which is code", "--arch")),
    ],
)
def test_options_that_the_conversion_contradicts_are_refused(folder, changes, words):
    with pytest.raises(ArgumentError) as error:
        resolved(recipe_for(folder, **changes))
    assert all(word in str(error.value) for word in words)


def test_options_that_it_agrees_with_are_none(folder):
    recipe = resolved(recipe_for(folder, n=4, hidden=16, init_rate=0.7))
    assert recipe == resolved(recipe_for(folder)) == resolved(recipe)


def test_order_and_rates_of_gates_are_the_saved_ones(folder, tmp_path):
    recipe = resolved(recipe_for(folder))
    assert (recipe.order, recipe.certainty, recipe.start_rate) == ("source", 0, 0.7)
    gate = GateConfig(certainty=0.8, init_rate=0.6)
    model, _ = dynamize(zoo.build(NET), 2, gate=gate, input_size=(3, 8, 8), order="importance")
    save(model, tmp_path / "plain", arch=NET)
    kept = resolved(recipe_for(tmp_path))
    assert (kept.order, kept.certainty, kept.start_rate) == ("importance", 0.8, 0.6)
    with pytest.raises(ArgumentError, match=r"order='source'.*with 'importance'; leave --order"):
        resolved(recipe_for(tmp_path, order="source"))


def test_a_zoos_network_needs_no_name(tmp_path):
    source = zoo.build("resnet18", num_classes=3)
    model, _ = dynamize(source, 2, where="stage:4-", input_size=(3, 32, 32))
    save(model, tmp_path, arch="resnet18", num_classes=3)
    recipe = resolved(Recipe(converted=str(tmp_path)))
    assert (recipe.arch, recipe.num_classes) == ("resnet18", 3)
    networks = build_networks(recipe, CLASSES)
    assert len(multi_path_blocks(networks.model)) == len(multi_path_blocks(model))
    with pytest.raises(ArgumentError, match="3 classes apart, but the data has 2; convert again"):
        build_networks(recipe, CLASSES[:2])


def test_different_numbers_of_sub_blocks_stay(tmp_path):
    model, _ = dynamize(zoo.build(NET), {"3": 2, "4": 4}, input_size=(3, 8, 8))
    save(model, tmp_path)
    recipe = resolved(Recipe(arch=NET, converted=str(tmp_path)))
    blocks = multi_path_blocks(build_networks(recipe, CLASSES).model)
    assert [len(block.sub_blocks) for block in blocks] == [2, 4]
    with pytest.raises(ArgumentError, match=r"n=3.*with \{'3': 2, '4': 4\}; leave -N out"):
        resolved(Recipe(arch=NET, converted=str(tmp_path), n=3))


def test_category_heads_must_fit(folder):
    taught = {"checkpoint": str(folder / "tiny.pth")}

    def built(name, categories):
        recipe = recipe_for(folder, name=name, categories=categories, **taught)
        return build_networks(resolved(recipe), CLASSES)

    assert built("heads", "clusters:2").categories.count == 2
    for name, categories, words in (
        ("heads", "clusters:3", "asks for 3 categories, but the conversion"),
        ("heads", None, "asks for none"),
        ("plain", "clusters:2", "has category heads for none"),
    ):
        with pytest.raises(ArgumentError, match=words):
            built(name, categories)


def test_a_directory_without_a_conversion_is_refused(folder):
    with pytest.raises(CheckpointError, match="cannot be read"):
        resolved(recipe_for(folder, name="none"))
