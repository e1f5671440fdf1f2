"""Stages and depths of blocks are those of the FLOPs table, without an input size."""

import pytest
import torch.nn.functional as F
from nets import cifar_resnet20
from quick import one_in, slow_unless
from small_nets import IMAGE, basic
from torch import nn

from dmnn_convert import dynamize, find_blocks
from dmnn_convert.io import zoo

ARCHITECTURES = {
    **dict.fromkeys(("resnet18", "resnext50_32x4d", "mobilenet_v2", "mnasnet0_5"), 64),
    **dict.fromkeys(("timm:resnet10t", "timm:mobilenetv2_100", "timm:resnetblur50"), 64),
    "regnet_x_400mf": 64,
}


@pytest.mark.parametrize(
    "arch", slow_unless(("resnet18", "mnasnet0_5").__contains__, ARCHITECTURES)
)
def test_stages_are_the_tables(arch):
    check(zoo.build(arch).eval(), ARCHITECTURES[arch])


def test_stages_of_shortcuts_that_only_slice():
    check(cifar_resnet20(), 32)


def check(model, size):
    blocks = [block for block in find_blocks(model) if block.reason is None]
    _, table = dynamize(model, input_size=(3, size, size))
    assert [block.name for block in blocks] == list(table.blocks)
    assert [block.stage - 1 for block in blocks] == list(table.stages)
    assert [block.depth for block in blocks] == list(range(1, len(blocks) + 1))
    assert len(set(table.stages)) > 2


class Between(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.first, self.second, self.between = basic(3, 8), basic(8, 8), between

    def forward(self, x):
        return self.second(self.between(self.first(x)))


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


SHRINK = {
    "conv": nn.Conv2d(8, 8, 3, 2, 1),
    "max pool": nn.MaxPool2d(2),
    "average pool": nn.AvgPool2d(3, (1, 2), 1),
    "transposed": nn.ConvTranspose2d(8, 8, 2, 2),
    "upsample": nn.Upsample(scale_factor=2),
    "F.max_pool2d": Functional(lambda x: F.max_pool2d(x, 2)),
    "F.avg_pool2d": Functional(lambda x: F.avg_pool2d(x, 3, stride=2)),
    "F.interpolate": Functional(lambda x: F.interpolate(x, scale_factor=0.5)),
}


@pytest.mark.parametrize("name", one_in(3, SHRINK))
def test_what_stands_between_two_blocks_starts_a_stage(name):
    model = Between(SHRINK[name])
    assert [block.stage for block in find_blocks(model)] == [1, 2]
    assert dynamize(model, input_size=IMAGE).table.stages == (0, 1)


@pytest.mark.parametrize(
    "between", [nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(3, 1, 1)]
)
def test_what_keeps_the_size_does_not(between):
    assert [block.stage for block in find_blocks(Between(between))] == [1, 1]


def test_near_misses_have_no_place():
    model = Between(basic(8, 8))
    model.between.branch[0].register_forward_hook(lambda *_: None)
    blocks = find_blocks(model)
    assert [(b.name, b.depth) for b in blocks] == [("first", 1), ("between", 0), ("second", 2)]
    assert [b.stage for b in blocks] == [1, 0, 1]


def test_a_line_says_where_a_block_stands():
    assert "stage 1 depth 2" in str(find_blocks(Between(nn.Identity()))[1])
