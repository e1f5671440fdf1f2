"""An image file that changed before a run resumes is noticed."""

import os
import shutil

import pytest
from finetune_data import image_folders, tiny_recipe
from PIL import Image, UnidentifiedImageError

from dmnn_convert import ArgumentError
from dmnn_convert.data import check_stamps, stamps
from dmnn_convert.data.image_files import picture
from dmnn_convert.data.images import open_data
from dmnn_convert.finetune import finetune


@pytest.fixture
def recipe(tmp_path):
    data = image_folders(tmp_path / "images", train=3, test=2)
    return tiny_recipe(data, tmp_path / "run", epochs=1, batch_size=3)


def test_a_replaced_image_is_refused_on_resume(recipe, tmp_path):
    finetune(recipe)
    image = tmp_path / "images" / "train" / "red" / "1.png"
    whole = image.read_bytes()
    image.write_bytes(whole + b"\0")
    with pytest.raises(
        ArgumentError, match=r"train/red/1\.png: name or size differs.*another --output"
    ):
        finetune(recipe, resume=True)
    image.write_bytes(whole)
    assert finetune(recipe, resume=True).evaluation.images == 6


def test_a_renamed_image_is_refused_on_resume(recipe, tmp_path):
    finetune(recipe)
    image = tmp_path / "images" / "test" / "red" / "1.png"
    image.rename(image.with_name("2.png"))
    with pytest.raises(ArgumentError, match=r"test/red/2\.png: name or size differs"):
        finetune(recipe, resume=True)


def test_another_image_of_the_same_size_is_told(recipe, tmp_path, capsys):
    finetune(recipe)
    image = tmp_path / "images" / "train" / "red" / "1.png"
    time = image.stat().st_mtime_ns + 1
    os.utime(image, ns=(time, time))
    finetune(recipe, resume=True)
    said = capsys.readouterr().err
    assert "train/red/1.png: written since the run began" in said


def test_data_that_moved_as_they_are_go_on(recipe, tmp_path, capsys):
    finetune(recipe)
    shutil.move(tmp_path / "images", tmp_path / "moved")
    finetune(recipe.with_changes({"data": str(tmp_path / "moved")}), resume=True)
    assert "written since" not in capsys.readouterr().err


def test_many_are_counted(recipe, tmp_path):
    data = open_data(recipe)
    before = {"train": stamps(data.train), "test": stamps(data.test)}
    assert before["train"].shape == (9, 2)
    assert check_stamps({"train": data.train, "test": data.test}, before) is None
    before["train"][2:5, 0] += 1
    before["train"][8, 1] += 1
    with pytest.raises(ArgumentError, match=r"blue/2\.png and 2 more: name or size differs"):
        check_stamps({"train": data.train}, before)
    before["train"][2:5, 0] -= 1
    assert check_stamps({"train": data.train}, before).startswith(data.train.samples[8][0])


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "ppm", "tiff", "webp", "gif", "jp2"])
def test_every_format_that_is_named_is_read(tmp_path, ending):
    file = tmp_path / f"image.{ending}"
    Image.new("RGB", (5, 4), (200, 30, 30)).save(file)
    assert picture(str(file)).size == (5, 4)
    file.write_bytes(b"nothing")
    with pytest.raises(UnidentifiedImageError):
        picture(str(file))
