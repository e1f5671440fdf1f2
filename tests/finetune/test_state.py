"""The state of a run: replaced whole or not at all, and resumed only by the same run."""

import contextlib
import resource
from pathlib import Path

import pytest
import torch

from dmnn_convert import ArgumentError, CheckpointError
from dmnn_convert.errors import TrainingError
from dmnn_convert.finetune import LAST, Recipe, workers_watched
from dmnn_convert.finetune.state import check_setting, prepare_folder, read_state, write_state

FILES = {"train": torch.zeros(9, 2).long(), "test": torch.zeros(3, 2).long()}
RUN = {
    "recipe": Recipe().to_dict(),
    "setting": {},
    "files": FILES,
    "trainer": {},
    "best": 0.0,
    "minutes": 1.0,
}
SETTING = {"training images": 9, "classes": ["cat", "dog", "owl"], "processes": 1}


@contextlib.contextmanager
def files_up_to(size):
    """Let the system refuse to write more into a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_state(tmp_path):
    write_state(tmp_path, {**RUN, "n": 1})
    with files_up_to(1 << 20), pytest.raises(CheckpointError, match=r"intact.*--resume"):
        write_state(tmp_path, {**RUN, "n": torch.zeros(1 << 20)})
    assert read_state(tmp_path, Recipe())["n"] == 1
    assert [file.name for file in tmp_path.iterdir()] == [LAST]


def test_a_disk_that_is_full_from_the_start_leaves_nothing_to_resume(tmp_path):
    with files_up_to(1 << 20), pytest.raises(CheckpointError, match="nothing was saved yet"):
        write_state(tmp_path, {**RUN, "n": torch.zeros(1 << 20)})
    assert not list(tmp_path.iterdir())


def test_a_loader_that_dies_amid_saving_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    def told(*_):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr(torch, "save", told)
    with pytest.raises(TrainingError, match="loader process died"), workers_watched():
        write_state(tmp_path, RUN)
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_is_found(tmp_path):
    write_state(tmp_path, {**RUN, "n": torch.zeros(1 << 10)})
    held = bytearray((tmp_path / LAST).read_bytes())
    held[held.index(bytes(100)) + 50] ^= 1  # one of the zeros
    (tmp_path / LAST).write_bytes(held)
    with pytest.raises(CheckpointError, match=r"damaged.*another --output"):
        read_state(tmp_path, Recipe())


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes no files")
def test_a_folder_that_cannot_be_written_to_is_refused():
    with pytest.raises(ArgumentError, match=r"/proc/self: cannot be made or written to"):
        prepare_folder(Path("/proc/self"), resume=False)


def test_a_state_of_another_format_is_refused(tmp_path):
    torch.save({**RUN, "format": 1}, tmp_path / LAST)
    with pytest.raises(CheckpointError, match="has format 1, this version reads"):
        read_state(tmp_path, Recipe())


def test_a_state_from_before_options_went_is_read(tmp_path):
    old = {**RUN["recipe"], "diversity": 0.0, "shaping": 0.0}
    write_state(tmp_path, {**RUN, "recipe": old})
    assert read_state(tmp_path, Recipe())["recipe"] == old
    write_state(tmp_path, {**RUN, "recipe": {**old, "shaping": 0.1}})
    with pytest.raises(ArgumentError, match=r"shaping=0\.1 is gone"):
        read_state(tmp_path, Recipe())


def test_the_same_setting_goes_on(tmp_path):
    write_state(tmp_path, {**RUN, "setting": SETTING})
    state = read_state(tmp_path, Recipe())
    check_setting(tmp_path, state, SETTING)
    assert state["setting"] == SETTING


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"processes": 2}, "processes: 2, not 1"),
        (
            {"training images": 8, "classes": ["cat", "emu"]},
            "training images: 8, not 9; classes: 2, not 3 new emu gone dog, owl.",
        ),
        ({"classes": ["dog", "cat", "owl"]}, "classes: in another order."),
    ],
)
def test_another_setting_is_refused_and_told(tmp_path, changes, words):
    with pytest.raises(ArgumentError) as error:
        check_setting(tmp_path, {"setting": SETTING}, {**SETTING, **changes})
    assert words in str(error.value)
    assert "another --output" in str(error.value)
