"""Statements that a forward runs in training only: they stay there, and there alone."""

import contextlib
import copy

import pytest
import torch
from idioms import IDIOMS, Net, block, build
from nets import images, off_by

from dmnn_convert import dynamize, find_blocks, force_gates, set_execution

DROPPING = [
    *("drop_connect(training)", "if self.training: drop_connect", "dropout in training"),
    *("rows dropped in training", "rows dropped by size"),
]


@pytest.mark.parametrize("name", DROPPING)
def test_training_draws_what_the_source_draws(name):
    source = build(name)
    model = dynamize(source, split="exact", input_size=IDIOMS[name].size).model
    x = images(source, IDIOMS[name].size, batch=6)
    for each in (model, copy.deepcopy(model)):
        set_execution(each, "masked")
        outputs = []
        for net in (source, each):
            net.train()
            torch.manual_seed(3)
            with force_gates(each, True) if net is each else contextlib.nullcontext():
                outputs.append(net(x))
            net.eval()
        assert off_by(outputs[1], outputs[0]) <= 1e-5
        assert off_by(outputs[0], source(x)) > 1e-3  # it does drop
        with force_gates(each, True):
            assert off_by(each(x), source(x)) <= 1e-5


def test_what_cannot_be_told_apart_stays_dense():
    found = find_blocks(build("another way in training"))
    assert found and all("differs between training and evaluation" in b.reason for b in found)


def test_what_asks_another_value_for_more_than_its_images_stays_dense():
    def drop_lines(self, x):
        y = self.b(torch.relu(self.a(x)))
        if self.training:
            y = y * (torch.rand(x.shape[0], 1, x.shape[2], 1) < 0.8) / 0.8
        return x + y

    found = find_blocks(Net(block(drop_lines)()))
    assert found and all("differs between training and evaluation" in b.reason for b in found)
