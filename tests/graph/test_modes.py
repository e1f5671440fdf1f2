"""The mode that an operation follows is that of the module whose forward it stands in."""

import re

import pytest
import torch
import torch.nn.functional as F
from asked_nets import IMAGES, Block, Net, blocks, converted, on
from torch import nn

from dmnn_convert.nn import conversion_of


class Both(Block):
    """A branch, and a shortcut that drops everything in training."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return F.dropout(self.conv(x), 1.0, self.training), self.b(F.relu(self.a(x)))


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Both()

    def forward(self, x):
        shortcut, branch = self.inner(x)
        return shortcut + branch


def test_a_module_inside_keeps_a_mode_of_its_own():
    net = Net(Around())
    model = converted(net)
    assert blocks(model) == 2
    assert "multi_path" in dict(model.blocks[0].named_children())
    for inner_training in (True, False):
        for each in (net, model):
            each.train()
            each.blocks[0].inner.train(inner_training)
        torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)


class AsksTheLayer(Block):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return x + F.dropout(self.b(F.relu(self.a(x))), 1.0, self.drop.training)


class Frozen(Block):
    """A branch that is never in training."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.b(F.relu(self.norm(self.a(x))))

    def train(self, mode=True):
        return super().train(False)


class WithFrozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Frozen()

    def forward(self, x):
        return x + self.inner(x)


class WithANorm(Block):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return x + self.b(F.relu(self.norm(self.a(x))))


class FreezesALayer(WithANorm):
    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self


REFUSED = [
    (AsksTheLayer, "asks for the mode of another module"),
    (WithFrozen, r"blocks.0.inner has a mode, or train\(\), of its own"),
    (
        FreezesALayer,
        r"train\(\) uses blocks.0.norm \(test_modes.py:\d+\), which the block would take",
    ),
]


@pytest.mark.parametrize(("block", "why"), REFUSED, ids=lambda a: getattr(a, "__name__", ""))
def test_what_would_follow_another_mode_stays_dense(block, why):
    net = Net(block())
    model = converted(net)
    assert blocks(model) == 1
    for each in (net, model):
        each.train()
        if block is AsksTheLayer:
            each.blocks[0].drop.eval()
    torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)
    own, its = dict(net.named_buffers()), dict(model.named_buffers())
    for name in own.keys() & its.keys():
        torch.testing.assert_close(its[name], own[name])
    if block is not AsksTheLayer:
        assert re.search(why, conversion_of(model).left["blocks.0"])


class FreezesByKind(WithANorm):
    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def test_norms_that_are_frozen_by_their_kind_stay_frozen():
    net = Net(FreezesByKind())
    model = converted(net)
    assert blocks(model) == 2
    for each in (net, model):
        each.train()
    torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)
    for _, buffer in model.named_buffers():
        assert not buffer.is_floating_point() or buffer.min() == buffer.max()  # as they were made


def frozen_by_the_forward(self, x):
    self.norm.eval()
    return x + self.b(F.relu(self.norm(self.a(x))))


def frozen_for_a_call(self, x):
    was = self.norm.training
    self.norm.train(False)
    y = self.norm(self.a(x))
    self.norm.train(was)
    return x + self.b(F.relu(y))


def frozen_around_its_layers(self, x):
    was = self.training
    self.eval()
    y = self.norm(self.a(x))
    self.train(was)
    return x + self.b(F.relu(y))


def always_dropping(self, x):
    self.drop.train()
    return x + self.b(self.drop(F.relu(self.a(x))))


def without_gradients(self, x):
    self.a.requires_grad_(False)
    y = self.a(x)
    self.a.requires_grad_(True)
    return x + self.b(F.relu(y))


SWITCHING = [
    *(frozen_by_the_forward, frozen_for_a_call, frozen_around_its_layers),
    *(always_dropping, without_gradients),
]


@pytest.mark.parametrize("forward", SWITCHING, ids=lambda f: f.__name__)
def test_a_layer_that_the_forward_switches_is_switched_in_each_call(forward):
    net = Net(switching := Block(forward))
    switching.norm, switching.drop = nn.BatchNorm2d(8), nn.Dropout(1.0)
    model = converted(net)
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert [module.training for module in net.modules()] == [True] * len(list(net.modules()))
    for training in (False, True):
        for each in (net, model):
            each.train(training).zero_grad()
            (on(each, IMAGES) if each is model else each(IMAGES)).sum().backward()
        torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)
        own, its = (m.blocks[0].a.weight.grad for m in (net, model))
        assert (own is None) == (its is None)
    told = conversion_of(model).left["blocks.0"]
    assert re.search(r"its forward \(test_modes.py:\d+\) leaves a side effect", told)
