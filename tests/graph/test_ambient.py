"""Parts of a forward still run under torch.no_grad, torch.autocast and hooks on saved tensors."""

import pytest
import torch
import torch.nn.functional as F
from asked_nets import IMAGES, Block, Net, blocks, converted, on
from torch import nn


class Frozen(Block):
    """Its first layer is never trained."""

    def forward(self, x):
        with torch.no_grad():
            y = self.a(x)
        return x + self.b(F.relu(y))


class Decorated(Block):
    """None of it is trained."""

    @torch.no_grad()
    def forward(self, x):
        return x + self.b(F.relu(self.a(x)))


class Around(Block):
    """Only what is inside it is not trained."""

    def __init__(self):
        super().__init__()
        self.inner = Block()

    def forward(self, x):
        with torch.no_grad():
            x = self.inner(x)
        return x + self.b(F.relu(self.a(x)))


@pytest.mark.parametrize("block", [Frozen, Decorated, Around])
@pytest.mark.parametrize("surrounding", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_what_no_grad_leaves_out_stays_untrained(block, surrounding):
    net = Net(block())
    with surrounding():
        model = converted(net)
    for each in (net, model):
        (on(model, IMAGES) if each is model else net(IMAGES)).sum().backward()
    trained = {name: p.grad is not None for name, p in net.named_parameters()}
    kept = dict(model.named_parameters())
    assert all((kept[n].grad is not None) == grad for n, grad in trained.items() if n in kept)
    assert not any(
        p.grad is not None
        for name, p in kept.items()
        if name.startswith("blocks.0.inner.") and "controller" not in name
    )
    assert blocks(model) == (2 if block is Around else 1)


class Precise(Block):
    """It runs in full precision under autocast."""

    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        return x.float() + self.b(F.relu(self.a(x.float())))


class Inside(Block):
    """Its second layer runs in full precision under autocast."""

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            y = self.b(F.relu(x.float()))
        return x + self.a(y)


@pytest.mark.parametrize("block", [Precise, Inside])
def test_autocast_that_is_switched_off_stays_off(block):
    net = Net(block()).eval()
    model = converted(net)
    with torch.no_grad(), torch.autocast("cpu"):
        expected, got = net.blocks[0](IMAGES), model.blocks[0](IMAGES)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert blocks(model) == 1


def test_gradients_that_are_switched_on_stay_on():
    class Energy(Block):
        def forward(self, x):
            with torch.enable_grad():
                y = F.relu(self.a(x.detach().requires_grad_()))
            return x + self.b(y)

    net = Net(Energy()).eval()
    model = converted(net)
    with torch.no_grad():
        torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)
    assert blocks(model) == 1


def test_a_model_that_was_made_in_inference_mode_converts():
    with torch.inference_mode():
        net = nn.Sequential(Block(), nn.BatchNorm2d(8)).eval()
    model = converted(net)
    with torch.inference_mode():
        torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)


class Switched(Block):
    """Its branch has gradients in training only."""

    def forward(self, x):
        with torch.set_grad_enabled(self.training):
            y = self.b(F.relu(self.a(x)))
        return x + y


def test_gradients_that_are_switched_by_a_flag_stay_so():
    net = Net(Switched())
    model = converted(net)
    assert blocks(model) == 1
    for training in (False, True):
        for each in (net.train(training), model.train(training)):
            each.zero_grad()
            (on(each, IMAGES) if each is model else each(IMAGES)).sum().backward()
        own, its = (m.blocks[0].a.weight.grad for m in (net, model))
        assert (own is None) == (its is None) == (not training)


class Packed(Block):
    """What it saves for backward is changed there."""

    def forward(self, x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: 2 * t):
            y = F.relu(self.a(x))
        return x + self.b(y)


class OnTheProcessor(Block):
    """PyTorch's own hooks change no value."""

    def forward(self, x):
        with torch.autograd.graph.save_on_cpu():
            y = F.relu(self.a(x))
        return x + self.b(y)


@pytest.mark.parametrize(("block", "count"), [(Packed, 1), (OnTheProcessor, 2)])
def test_hooks_on_saved_tensors_still_change_gradients(block, count):
    net = Net(block())
    model = converted(net)
    images = [IMAGES.clone().requires_grad_() for _ in range(2)]
    net(images[0]).sum().backward()
    on(model, images[1]).sum().backward()
    torch.testing.assert_close(images[1].grad, images[0].grad, rtol=1e-4, atol=1e-5)
    assert blocks(model) == count
