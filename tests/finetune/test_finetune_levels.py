"""Fine-tuning for all levels, and with images in memory."""

import json

import pytest
import torch
from click.testing import CliRunner
from finetune_data import NET, image_folders, tiny_recipe
from PIL import Image
from torchvision.transforms import functional as TF

from dmnn_convert import ArgumentError, at_level, evaluate, load
from dmnn_convert.cli.finetune import chosen, finetune_command
from dmnn_convert.data import EpochOrder, KeptBatches, MemoryBatches
from dmnn_convert.data.images import open_data
from dmnn_convert.data.transforms import Preprocessing
from dmnn_convert.distributed import joined
from dmnn_convert.finetune import LAST, Interrupted, Recipe, finetune
from dmnn_convert.finetune.trainer import Trainer
from dmnn_convert.io import zoo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return image_folders(tmp_path_factory.mktemp("images"))


def recipe_for(folder, output, **changes):
    # The target is that of gates, which levels have none of.
    own = {"weights": "random", "in_memory": True, "levels": (0.25, 0.5, 1.0), "target": 0.01}
    return tiny_recipe(folder, output, **own).with_changes(changes)


def test_levels_decide_the_conversion_where_nothing_else_does():
    assert Recipe().split_up == (2, "matched", "per-sub-block")
    assert Recipe(levels=(0.25, 0.5, 1)).split_up == (4, "exact", "shared")
    assert Recipe(levels=(0.33, 0.67, 1)).split_up.n == 3
    given = Recipe(levels=(0.5, 1), n=4, split="matched", tail_norm="per-sub-block")
    assert given.split_up == (4, "matched", "per-sub-block")
    assert given.settled() == given


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"levels": (0.5, 0.25, 1)}, "rising"),
        ({"levels": (0.25, 0.5)}, "the last one 1"),
        ({"levels": (0.5, 1.5)}, "at most 1"),
        ({"levels": (0.3, 1), "n": 4}, "Give 0.25 or 0.5"),
        ({"levels": (0.5, 1), "n": 0}, "leave one of the two out"),
        ({"levels": (0.5, 1), "categories": "clusters:4"}, "leave one of the two out"),
    ],
)
def test_levels_that_cannot_be_trained_are_refused_at_once(changes, said):
    with pytest.raises(ArgumentError, match=said):
        Recipe(**changes)


def test_the_command_reads_levels_with_commas():
    with finetune_command.make_context("finetune", ["--levels", "0.25,0.5", "--levels", "1"]) as c:
        assert chosen(c.params)["levels"] == (0.25, 0.5, 1.0)
    result = CliRunner().invoke(finetune_command, ["--levels", "a,b"])
    assert "give numbers" in result.output


@pytest.mark.parametrize("split", ["exact", "nested"])
def test_a_run_trains_all_levels_and_keeps_their_statistics(folder, tmp_path, split):
    result = finetune(recipe_for(folder, tmp_path / "run", held_out=0.2, split=split))
    assert list(result.levels) == [0.25, 0.5, 1.0]
    described = json.loads((tmp_path / "run" / "result.json").read_text())
    model, table = load(tmp_path / "run" / "final", model=zoo.build(NET))
    test = open_data(recipe_for(folder, tmp_path)).test
    how = TF.to_tensor, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = torch.stack([TF.normalize(how[0](image), *how[1]) for image, _ in test])
    loader = [(images, torch.tensor([label for _, label in test]))]
    for level, found in result.levels.items():
        assert described["levels"][f"{level:g}"]["top1"] == found.top1
        with at_level(model, level):
            again = evaluate(model, table, loader)
        assert again.top1 == found.top1
        assert again.network_flops_ratio == found.network_flops_ratio
    with torch.no_grad():  # without a level it is the whole network
        for_all = model.eval()(images)
        with at_level(model, 1.0):
            torch.testing.assert_close(model(images), for_all)
    ratios = [found.network_flops_ratio.mean for found in result.levels.values()]
    assert ratios == sorted(ratios)
    assert ratios[0] < 0.5


def test_a_run_for_levels_goes_on_as_if_it_had_not_stopped(folder, tmp_path, monkeypatch):
    whole = finetune(recipe_for(folder, tmp_path / "whole"))
    step = Trainer._train_step

    def stopping(self, *args):
        step(self, *args)
        if self.updates == 8:
            raise Interrupted("enough")

    monkeypatch.setattr(Trainer, "_train_step", stopping)
    with pytest.raises(Interrupted):
        finetune(recipe_for(folder, tmp_path / "parts", save_minutes=1e-9))
    monkeypatch.setattr(Trainer, "_train_step", step)
    parts = finetune(recipe_for(folder, tmp_path / "parts"), resume=True)
    assert {k: v.top1 for k, v in parts.levels.items()} == {
        k: v.top1 for k, v in whole.levels.items()
    }
    mine, theirs = (torch.load(tmp_path / n / LAST, weights_only=True) for n in ("whole", "parts"))
    for name, value in mine["trainer"]["model"].items():
        assert torch.equal(value, theirs["trainer"]["model"][name]), name


def test_controllers_are_not_trained(folder, tmp_path):
    with joined("cpu"):
        finetune(recipe_for(folder, tmp_path / "run", epochs=1))
    state = torch.load(tmp_path / "run" / LAST, weights_only=True)["trainer"]
    gates = [k for k in state["model"] if ".controller.w" in k]
    assert gates
    torch.manual_seed(0)
    trained = sum(len(group["params"]) for group in state["optimizer"]["param_groups"])
    network = [k for k in state["model"] if k.endswith(("weight", "bias"))]
    assert trained == len(network) - len(gates)


# --- images in memory -----------------------------------------------------------------------------


def memory_for(recipe):
    how = Preprocessing(8, (0.5,) * 3, (0.25,) * 3)
    images = open_data(recipe).train
    with joined("cpu") as processes:
        order = EpochOrder(images, recipe.seed, processes)
        return MemoryBatches(recipe, images, how, order, recipe.batch_size, shown=False)


def test_images_in_memory_are_padded_crops_of_the_files(folder, tmp_path):
    recipe = recipe_for(folder, tmp_path, crop="pad")
    kept = memory_for(recipe)
    keys = list(kept.order)
    images = open_data(recipe).train
    for number, batch in enumerate(kept):
        for i, (_, index) in enumerate(keys[6 * number : 6 * number + 6]):
            image, label = images[index]
            assert batch.labels[i] == label
            tensor = TF.to_tensor(image)
            crops = {
                (down, right, mirrored): TF.crop(
                    TF.pad(tensor.flip(-1) if mirrored else tensor, [1] * 4), down, right, 8, 8
                )
                for down in range(3)
                for right in range(3)
                for mirrored in (False, True)
            }
            ours = batch.images[i] * 0.25 + 0.5
            assert any(torch.allclose(ours, crop, atol=1e-5) for crop in crops.values())


def test_images_in_memory_come_again_in_any_epoch_and_from_any_start(folder, tmp_path):
    kept, again = (memory_for(recipe_for(folder, tmp_path)) for _ in range(2))
    first = list(kept)
    kept.order.epoch = 1
    assert not torch.equal(first[0].images, next(iter(kept)).images)
    again.order.start = 12
    rest = list(again)
    assert len(rest) == len(first) - 2
    assert torch.equal(rest[0].images, first[2].images)


def test_images_in_memory_that_cannot_be_read_are_reported(tmp_path):
    root = image_folders(tmp_path / "images", train=4, test=2)
    (root / "train" / "blue" / "1.png").write_bytes(b"no image")
    kept = memory_for(recipe_for(root, tmp_path, batch_size=12))
    (batch,) = kept
    assert len(batch.labels) == 11
    assert batch.bad[0].file.endswith("blue/1.png")
    with pytest.raises(ArgumentError, match="cannot be read"):
        finetune(recipe_for(root, tmp_path / "run"))


def test_augmentation_of_single_images_is_refused_in_memory(folder, tmp_path):
    with pytest.raises(ArgumentError, match="--erase works image by image"):
        finetune(recipe_for(folder, tmp_path / "run", erase=0.5))
    with pytest.raises(ArgumentError, match="--crop resize"):
        finetune(recipe_for(folder, tmp_path / "run", crop="resize"))


def test_batches_that_never_change_are_read_once():
    asked = []

    class Loader:
        def __iter__(self):
            asked.append(1)
            yield from (1, 2)

    kept = KeptBatches(Loader())
    next(iter(kept))  # a pass that ends early keeps nothing
    assert [list(kept), list(kept)] == [[1, 2], [1, 2]]
    assert len(asked) == 2


def test_images_held_out_are_the_same_in_every_run(folder, tmp_path):
    one, other = (
        open_data(recipe_for(folder, tmp_path, held_out=0.25, seed=seed)) for seed in (0, 1)
    )
    assert one.held_out.indices == other.held_out.indices
    assert len(one.held_out) == 9
    assert set(one.train.indices) | set(one.held_out.indices) == set(range(36))
    assert isinstance(one.train[0][0], Image.Image)
