"""Every name of a value sees a write into it, in the source and after conversion."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from quick import one_in
from torch import nn

import dmnn_convert as dc


class Block(nn.Module):
    def __init__(self, inplace=False):
        super().__init__()
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.ReLU(inplace)

    def residual(self, x):
        return self.b(self.act(self.a(x)))

    def forward(self, x):
        return x + self.residual(x)


class Net(nn.Module):
    """A stem, a plain block, what is under test, and a plain block."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.last = Block(), Block()
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.pos = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.setup()

    def setup(self):
        pass

    def residual(self, x):
        return self.b(F.relu(self.a(x)))

    def forward(self, x):
        return self.last(self.form(self.first(self.stem(x))))


FORMS = []


def form(function):
    name = function.__name__
    FORMS.append(pytest.param(type(name, (Net,), {"form": function}), id=name))
    return function


def with_setup(setup):
    def decorated(function):
        cls = type(function.__name__, (Net,), {"form": function, "setup": setup})
        FORMS.append(pytest.param(cls, id=function.__name__))
        return function

    return decorated


@form
def sum_in_place_read_by_another_name(self, x):
    skip = x
    x += self.residual(x)
    return x + skip


@form
def scaled_in_place(self, x):
    y = x
    x *= 0.5
    return y + self.residual(y)


@form
def divided_in_place_inside_the_branch(self, x):
    y = self.a(x)
    z = y
    y /= 2
    return x + self.b(z)


@form
def method_on_the_input_of_the_branch(self, x):
    y = self.residual(x)
    x.mul_(2)
    return x + y


@form
def element_of_a_list(self, x):
    fs = [x, self.a(x)]
    fs[0] += self.pos
    return self.b(fs[1]) + x


def halve(t):
    t *= 0.5


@form
def helper_that_writes(self, x):
    halve(x)
    return x + self.residual(x)


@form
def helper_that_writes_after_the_branch(self, x):
    y = self.residual(x)
    halve(x)
    return x + y


@form
def view_of_some_channels(self, x):
    y = self.a(x)
    v = y[:, :6]
    v += 1
    return x + self.b(F.relu(y))


@form
def view_of_the_shortcut(self, x):
    y = self.residual(x)
    v = x[:, :6]
    v += 1
    return x + y


@form
def subscript_on_the_left(self, x):
    y = self.a(x)
    y[:, 0] = 0.0
    return x + self.b(F.relu(y))


@form
def subscript_of_the_shortcut(self, x):
    y = self.residual(x)
    x[:, 0] = y[:, 1]
    return x + y


@form
def chunks_of_the_branch(self, x):
    y = self.a(x)
    p, q = y.chunk(2, 1)
    p *= 2.0
    q -= 1.0
    return x + self.b(y)


@form
def chunks_joined_again(self, x):
    p, q = self.a(x).chunk(2, 1)
    p *= 2.0
    return x + self.b(torch.cat([p, q], 1))


def _unet(self):
    self.down, self.up = nn.ModuleList(Block() for _ in range(2)), Block()


@with_setup(_unet)
def skips_of_a_unet(self, x):
    skips = []
    for block in self.down:
        skips.append(x)
        x += block.residual(x)
    while skips:
        x = self.up.residual(x + skips.pop())
    return x


class InPlaceBlock(Block):
    def forward(self, x):
        x += self.residual(x)
        return x


def _inner(self):
    self.inner = InPlaceBlock()


@with_setup(_inner)
def block_that_writes_into_its_callers_tensor(self, x):
    skip = x
    return self.inner(x) + self.a(skip)


@with_setup(_inner)
def block_that_writes_into_what_nobody_reads(self, x):
    return self.inner(x)


@form
def result_written_to(self, x):
    y = torch.empty_like(x)
    z = y
    y.copy_(x + self.residual(x))
    return z


@form
def sum_by_a_method_and_read_by_the_old_name(self, x):
    y = x.add_(self.residual(x))
    return y * x


def _activated(self):
    self.act = nn.ReLU(inplace=True)


@with_setup(_activated)
def activation_in_place_of_the_shortcut(self, x):
    y = self.act(x)
    return x + self.residual(y)


@with_setup(_activated)
def activation_in_place_after_the_branch(self, x):
    y = self.residual(x)
    self.act(x)
    return x + y


@form
def functional_activation_in_place(self, x):
    y = self.residual(x)
    F.relu(x, True)
    return x + y


def _dropped(self):
    self.drop, self.c = nn.Dropout(0.5), nn.Conv2d(8, 8, 1)


@with_setup(_dropped)
def name_passed_on_by_dropout(self, x):
    y = self.drop(x)
    x += self.residual(x)
    return x * self.c(y)


@with_setup(_dropped)
def detached_name(self, x):
    y = x.detach()
    x += self.residual(x)
    return x * self.c(y)


@form
def size_that_is_counted_up(self, x):
    n = x.shape[1]
    m = n
    n += 1
    return x + self.residual(x) if n > m else x


def converted(net, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dc.dynamize(net, 2, split="exact", input_size=(3, 8, 8), **options).model


def made(cls):
    torch.manual_seed(0)
    return cls().eval()


@pytest.mark.parametrize("cls", one_in(2, FORMS))
def test_a_write_is_seen_by_every_name(cls):
    source = made(cls)
    model = converted(source)
    for seed in range(2):
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad(), dc.force_gates(model, True):
            torch.testing.assert_close(model(images.clone()), source(images.clone()))


TRAINED = (
    *("scaled_in_place", "helper_that_writes", "divided_in_place_inside_the_branch"),
    *("view_of_some_channels", "activation_in_place_of_the_shortcut"),
)
"""Others write into what a convolution keeps for its backward pass: no such source can learn."""


@pytest.mark.parametrize("cls", [p for p in FORMS if p.id in TRAINED])
def test_gradients_through_writes_are_the_sources(cls):
    source = made(cls).train()
    model = converted(source).train()
    images = torch.randn(2, 3, 8, 8)
    with dc.force_gates(model, True):
        model(images.clone()).square().mean().backward()
    source(images.clone()).square().mean().backward()
    torch.testing.assert_close(model.stem.weight.grad, source.stem.weight.grad)


def test_the_reason_names_the_line():
    cls = next(p.values[0] for p in FORMS if p.id == "view_of_the_shortcut")
    reasons = [block.reason for block in dc.find_blocks(made(cls)) if block.reason]
    line = cls.form.__code__.co_firstlineno + 4
    assert f"(test_writes.py:{line}) overwrites the block's input in place" in reasons[0]


# --- tensors that a forward makes ---------------------------------------------------------------


@form
def total_in_a_new_tensor(self, x):
    y = x + self.residual(x)
    t = torch.zeros(1)
    t += y.mean()
    return y * t


@form
def rows_of_a_new_tensor(self, x):
    y = x + self.residual(x)
    t = torch.zeros(8, 1, 1)
    t[0] = y.mean()
    return y * t


@form
def new_tensor_written_between_two_reads(self, x):
    t = torch.zeros(8, 1, 1)
    y = x + self.residual(x) + t
    t += 1
    return y * t


@pytest.mark.parametrize("cls", one_in(3, FORMS[-3:]))
@pytest.mark.parametrize("training", [False, True])
def test_a_tensor_made_in_the_forward_is_made_anew_each_time(cls, training):
    source = made(cls).train(training)
    model = converted(source).train(training)
    assert not [b for b in dc.find_blocks(source) if b.name.startswith("a") and b.split]
    with dc.force_gates(model, True):
        for _ in range(3):
            images = torch.randn(2, 3, 8, 8)
            ours, theirs = model(images.clone()), source(images.clone())
            torch.testing.assert_close(ours, theirs)
            ours.mean().backward()
