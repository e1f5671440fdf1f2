"""Forwards that run the same operations in both modes, on other values, are not the same."""

import pytest
import torch
import torch.nn.functional as F
from asked_nets import IMAGES, Block, Net, blocks, converted, on
from torch import nn

from dmnn_convert import find_blocks


def branch(self, x):
    return self.b(F.relu(self.a(x)))


def returns_another(self, x):
    y = branch(self, x)
    z = x + y
    return y if self.training else z


def adds_to_another(self, x):
    y = self.norm(x)
    return (x if self.training else y) + branch(self, y)


def reads_another(self, x):
    y = self.norm(x)
    return x + branch(self, x if self.training else y)


def twice_in_training(self, x):
    y = self.norm(x)
    z = branch(self, y)
    return z * (y if self.training else x) + x + self.norm(z)


FORWARDS = (returns_another, adds_to_another, reads_another, twice_in_training)


def net_of(forward):
    torch.manual_seed(0)
    block = Block(forward)
    block.norm = nn.BatchNorm2d(8)
    return Net(block)


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda f: f.__name__)
def test_each_mode_keeps_its_function(forward):
    net = net_of(forward)
    model = converted(net)
    assert blocks(model) == 1
    for training in (False, True):
        outputs = [
            on(m.train(training), IMAGES) if m is model else m.train(training)(IMAGES)
            for m in (net, model)
        ]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    mean = net.blocks[0].norm.running_mean
    torch.testing.assert_close(model.blocks[0].norm.running_mean, mean)


def test_the_reason_says_so():
    reasons = [block.reason for block in find_blocks(net_of(reads_another), (8, 16, 16))]
    told = "blocks.0: its forward differs between training and evaluation (test_wiring.py:"
    assert any(reason and reason.startswith(told) for reason in reasons)


class Heads(nn.Module):
    """The root gives more in training; its blocks are the same in both."""

    def __init__(self):
        super().__init__()
        self.one, self.two = Block(), Block()

    def forward(self, x):
        y = self.one(x)
        z = self.two(y)
        return (z, y) if self.training else z


def test_blocks_of_a_root_that_returns_more_in_training_convert():
    net = Heads()
    model = converted(net)
    assert blocks(model) == 2
    for ours, its in zip(on(model.train(), IMAGES), net.train()(IMAGES), strict=True):
        torch.testing.assert_close(ours, its, rtol=1e-4, atol=1e-5)
