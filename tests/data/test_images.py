"""Data for fine-tuning: the same batches again after an interruption or on more processes."""

from dataclasses import replace

import pytest
import torch
from finetune_data import CLASSES, image_folders
from quick import one_in

from dmnn_convert import ArgumentError
from dmnn_convert.data import (
    Augmented,
    DataOptions,
    checked,
    collate,
    open_test,
    test_loader,
    test_transform,
    training_loader,
    training_transform,
)
from dmnn_convert.data.images import BadImage, open_data
from dmnn_convert.data.transforms import Preprocessing
from dmnn_convert.distributed import Processes
from dmnn_convert.finetune import EvaluationBatches

SMALL = Preprocessing(8, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
ALONE = Processes(0, 1, torch.device("cpu"))

test_loader.__test__ = test_transform.__test__ = False


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return image_folders(tmp_path_factory.mktemp("images"))


def training(folder, processes=ALONE, **changes):
    options = DataOptions(**{"data": str(folder), "batch_size": 6, "workers": 0, **changes})
    transform = training_transform(options, SMALL)
    return training_loader(options, open_data(options).train, transform, processes)


def epoch_of(loader, order, epoch, start=0):
    order.epoch, order.start = epoch, start
    return [(batch.images, batch.labels) for batch in loader]


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(ours, theirs, strict=True)
    )


def test_folders_are_read(folder):
    data = open_data(DataOptions(data=str(folder)))
    assert (data.classes, len(data.train), len(data.test)) == (CLASSES, 36, 15)


@pytest.mark.parametrize(
    "options",
    one_in(
        3,
        [
            {},
            {"auto_augment": "rand-m5-n2", "erase": 0.5},
            {"crop": "resize"},
            {"crop": "resize", "auto_augment": "rand-m5-n2", "erase": 0.5},
            {"crop": "none", "flip": False},
        ],
    ),
)
def test_batches_depend_on_seed_and_epoch_alone(folder, options):
    alone, in_processes = training(folder, **options), training(folder, workers=2, **options)
    first = epoch_of(*alone, epoch=0)
    torch.rand(7)  # what else is drawn changes nothing
    assert same(first, epoch_of(*alone, epoch=0))
    assert same(first, epoch_of(*in_processes, epoch=0))
    assert not same(first, epoch_of(*alone, epoch=1))
    assert not same(first, epoch_of(*training(folder, seed=1, **options), epoch=0))


def test_an_epoch_goes_on_where_it_stopped(folder):
    loader, order = training(folder)
    whole = epoch_of(loader, order, epoch=3)
    assert same(whole[2:], epoch_of(loader, order, epoch=3, start=12))


def test_processes_share_each_batch(folder):
    whole = epoch_of(*training(folder), epoch=2)
    halves = [
        epoch_of(*training(folder, Processes(rank, 2, torch.device("cpu"))), epoch=2)
        for rank in (0, 1)
    ]
    for (_, labels), (_, left), (_, right) in zip(whole, *halves, strict=True):
        assert torch.equal(labels, torch.stack([left, right], 1).flatten())


def test_every_test_image_is_seen_once(folder):
    options = DataOptions(data=str(folder), batch_size=4, workers=0)
    images = open_data(options).test
    seen = sum(
        len(batch.labels)
        for rank in range(4)
        for batch in test_loader(
            options, images, test_transform(SMALL), Processes(rank, 4, torch.device("cpu"))
        )
    )
    assert seen == 15


def test_broken_images_stop_or_are_left_out(tmp_path):
    root = image_folders(tmp_path)
    broken = root / "train" / "red" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    loader, _ = training(root)
    batches = list(loader)
    assert sum(len(b.labels) for b in batches) == 35
    bad = next(b for b in batches if b.bad)
    assert len(checked(bad, DataOptions(on_bad_image="skip")).labels) == 5
    with pytest.raises(ArgumentError) as error:
        checked(bad, DataOptions())
    assert str(broken) in str(error.value)
    assert "--on-bad-image skip" in str(error.value)


def test_an_image_that_ends_too_soon_is_a_bad_image():
    class Ends(torch.utils.data.Dataset):
        def __getitem__(self, index):
            raise EOFError("no more frames")

    bad = Augmented(Ends(), lambda image: image, seed=0)[0, 7]
    assert bad == BadImage("image 7", "no more frames")


def test_bad_folders_are_named(tmp_path, folder):
    def words(**options):
        with pytest.raises(ArgumentError) as error:
            open_data(DataOptions(**options))
        return str(error.value)

    assert "--data DIR" in words()
    assert "no such folder" in words(data=str(tmp_path / "none"))
    assert "train/" in words(data=str(tmp_path))
    (tmp_path / "train").mkdir()
    assert "folder of images for every class" in words(data=str(tmp_path))
    assert "holds no cifar10" in words(data=str(tmp_path), dataset="cifar10")
    odd = image_folders(tmp_path / "odd")
    (odd / "test" / "red").rename(odd / "test" / "pink")
    assert "pink, red" in words(data=str(odd))
    with pytest.raises(ArgumentError, match="only 36 images"):
        training(folder, batch_size=64)
    for batch_size, count in ((6, 4), (1, 2)):
        with pytest.raises(ArgumentError, match=f"all {count} processes"):
            training(folder, Processes(0, count, torch.device("cpu")), batch_size=batch_size)


def test_images_to_evaluate_on_are_enough(tmp_path):
    root = image_folders(tmp_path)
    (root / "train").rename(root / "elsewhere")
    images, classes = open_test(DataOptions(data=str(root)))
    assert (len(images), classes) == (15, CLASSES)


@pytest.mark.parametrize("batch_size", [2, 6])
def test_test_images_that_are_left_out_are_counted(tmp_path, batch_size):
    root = image_folders(tmp_path)
    broken = [root / "test" / "blue" / f"{i}.png" for i in (0, 1, 4)]
    for file in broken:
        file.write_bytes(file.read_bytes()[:40])
    options = DataOptions(data=str(root), batch_size=batch_size, workers=0, on_bad_image="skip")
    loader = test_loader(options, open_data(options).test, test_transform(SMALL), ALONE)
    batches = EvaluationBatches(options, loader, ALONE)
    for _ in range(2):  # counted anew each time
        assert sum(len(batch.labels) for batch in batches) == 12
        assert batches.all_skipped() == 3
    batches.options = replace(options, on_bad_image="stop")
    with pytest.raises(ArgumentError, match="--on-bad-image skip"):
        list(batches)


def test_a_batch_of_nothing_but_broken_images_stops_training():
    batch = collate([BadImage("a.png", "truncated"), BadImage("b.png", "truncated")])
    with pytest.raises(ArgumentError, match="all 2 of its batch"):
        checked(batch, DataOptions(on_bad_image="skip"))
