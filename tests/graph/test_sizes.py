"""Forwards that decide by sizes are converted for images of one size, which they check."""

import copy

import pytest
import torch
import torch.nn.functional as F
from idioms import IDIOMS, build
from nets import images, off_by

from dmnn_convert import ArgumentError, dynamize, find_blocks, force_gates
from dmnn_convert.nn import multi_path_blocks

DECIDING = ["same padding", "padded to a multiple", "an assertion on sizes", "windows"]


@pytest.mark.parametrize("name", DECIDING)
def test_other_sizes_are_an_error_and_other_batches_are_not(name):
    source = build(name)
    model = dynamize(source, split="exact", input_size=IDIOMS[name].size).model
    for batch in (1, 5):
        x = images(source, IDIOMS[name].size, batch=batch)
        with torch.no_grad(), force_gates(model, True):
            assert off_by(model(x), source(x)) <= 1e-5
    with pytest.raises(ArgumentError, match=r"decides by them.*input_size="):
        model(images(source, (3, 13, 13)))
    again = copy.deepcopy(model)
    with pytest.raises(ArgumentError, match="decides by them"):
        again(images(source, (3, 13, 13)))


@pytest.mark.parametrize("name", ["ones for places", "a module and zeros made in the forward"])
def test_what_asks_for_the_number_of_dimensions_alone_takes_every_size(name):
    source = build(name)
    model = dynamize(source, split="exact", input_size=(3, 12, 12)).model
    x = images(source, (3, 9, 14))
    with torch.no_grad(), force_gates(model, True):
        assert off_by(model(x), source(x)) <= 1e-5


def test_without_a_size_the_question_is_the_reason():
    found = find_blocks(build("padded to a multiple"))
    assert all("branches on a value that only a run knows (idioms.py" in b.reason for b in found)
    found = find_blocks(build("padded to a multiple"), (3, 12, 12))
    assert [b.reason for b in found] == [None, None]


def test_what_the_size_of_the_batch_decides_stays_dense():
    found = find_blocks(build("no batch"), (3, 12, 12))
    assert all("asks len(...)" in b.reason for b in found)


def test_a_way_that_the_root_takes_by_size_is_still_free():
    class Either(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = build("pre-activation")

        def forward(self, x):
            if x.shape[2] > 12:
                x = F.avg_pool2d(x, 2)
            return self.net(x)

    source = Either()
    model = dynamize(source, split="exact", input_size=(3, 12, 12)).model
    assert len(multi_path_blocks(model)) == 2
    for side in (12, 24):
        x = images(source, (3, side, side))
        with torch.no_grad(), force_gates(model, True):
            assert off_by(model(x), source(x)) <= 1e-5


def test_a_dropout_before_a_question_draws_nothing():
    """Sizes are computed by running what comes before the question, in training as well."""

    class Dropping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(8, 12, 1), torch.nn.Conv2d(12, 8, 1)
            self.drop = torch.nn.Dropout(0.5)

        def forward(self, x):
            if x.shape[2] % 2:
                x = F.pad(x, (0, 1, 0, 1))
            return x + self.drop(self.b(F.relu(self.a(x))))

    source = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), Dropping(), Dropping(), Dropping())
    found = find_blocks(source, (3, 12, 12))
    assert [b.reason for b in found] == [None, None, None]
