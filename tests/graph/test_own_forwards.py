"""Forwards that were replaced on the instance, hooks that a model collects with, odd train()."""

import functools

import pytest
import torch
import torch.nn.functional as F
from asked_nets import IMAGES, Block, Net, blocks, converted, on
from torch import nn

import dmnn_convert as dc


class Fusing(Block):
    """It may run another method of its own, as YOLO's fused layers do."""

    def fused(self, x):
        return 2 * x + self.b(F.relu(self.a(x)))


def check_equal(model, net):
    with torch.no_grad():
        torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrap", [Net, lambda block: block], ids=["inside", "root"])
def test_a_method_of_its_own_in_the_place_of_forward_converts(wrap):
    block = Fusing()
    block.forward = block.fused
    net = wrap(block).eval()
    model = converted(net)
    assert blocks(model) == (2 if wrap is Net else 1)
    check_equal(model, net)


def doubled(module, x):
    return module.old(x) * 2


def test_any_other_replaced_forward_keeps_its_block_dense():
    block = Block()
    block.old = block.forward
    block.forward = functools.partial(doubled, block)
    net = Net(block).eval()
    model = converted(net)
    assert blocks(model) == 1
    check_equal(model, net)
    reasons = [b.reason for b in dc.find_blocks(net) if b.reason]
    assert any("forward was replaced on the instance" in reason for reason in reasons)


def test_a_function_that_is_bound_to_the_original_is_converted_in_place_only():
    net = Net(Block()).eval()
    first = net.blocks[0]
    forward = first.forward
    first.forward = lambda x: forward(x) * 2
    with pytest.raises(dc.ConversionError, match=r"blocks.0.forward is a function .* inplace=True"):
        converted(net)
    with torch.no_grad():
        expected = net(IMAGES)
        got = on(converted(net, inplace=True), IMAGES)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert blocks(net) == 1


def test_blocks_inside_a_replaced_forward_convert():
    net = Net(Block()).eval()
    net.old = net.forward
    net.forward = functools.partial(doubled, net)
    model = converted(net)
    assert blocks(model) == 2
    check_equal(model, net)


class Collecting(nn.Module):
    """Its own hook collects what it returns; it cannot be traced as a whole."""

    def __init__(self, by_method):
        super().__init__()
        self.inner, self.found = Net(Block()), []
        found = self.found
        hook = self.collect if by_method else lambda module, inputs, output: found.append(output)
        self.inner.register_forward_hook(hook)

    def collect(self, module, inputs, output):
        self.found.append(output)

    def forward(self, x):
        self.found.clear()
        self.inner(x)
        return self.found[0] * 2 if x.mean() > -1e9 else x


def test_a_model_that_collects_in_its_own_hooks_converts():
    net = Collecting(by_method=True).eval()
    model = converted(net)
    assert net.found == []
    assert blocks(model) == 2
    check_equal(model, net)


def test_hooks_that_a_copy_cannot_carry_are_named():
    with pytest.raises(dc.ArgumentError, match="without the hooks on inner the model does not run"):
        converted(Collecting(by_method=False))


def test_train_may_return_nothing():
    class Silent(Net):
        def train(self, mode=True):
            super().train(mode)

        def forward(self, x):
            return x if x.mean() > 1e9 else super().forward(x)

    net = Silent(Block())
    model = converted(net)
    assert net.training and model.training
    net.eval()
    model.eval()
    assert blocks(model) == 2
    check_equal(model, net)


def fixed(self, x, scale=2.0, sizes=(1, 2), mask=None, how=None):
    x = x + self.b(F.relu(self.a(x))) * scale * sizes[1]
    return x if mask is None else x * mask


@pytest.mark.parametrize(
    "argument",
    [
        *({"scale": 3.0}, {"sizes": (1, 3)}, {"sizes": [1]}, {"mask": torch.ones(1)}),
        {"how": {"a": 1}},
    ],
    ids=str,
)
def test_an_argument_that_is_built_in_says_so(argument):
    model = converted(type("Fixed", (Block,), {"forward": fixed})().eval())
    images = torch.randn(1, 8, 16, 16)
    (name,) = argument
    with pytest.raises(dc.ArgumentError, match=f"{name}=.* which is built in"):
        model(images, **argument)
    model(images, scale=2, sizes=(1, 2), mask=None)


def by_default(self, x, mask=torch.ones(1)):  # noqa: B008
    return (x + self.b(F.relu(self.a(x)))) * mask


def test_a_tensor_as_a_default_is_refused():
    with pytest.raises(dc.NoBlocksFoundError, match="mask= is a tensor by default"):
        converted(type("Fixed", (Block,), {"forward": by_default})().eval())
