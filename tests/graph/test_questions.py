"""Python questions of a forward are answered as in a run, or leave their block dense."""

import pytest
import torch
import torch.nn.functional as F
from asked_nets import IMAGES, Block, Net, blocks, converted, on
from torch import nn

import dmnn_convert as dc


def isinstance_tensor(self, x):
    if isinstance(x, torch.Tensor) and not isinstance(x, (list, tuple)):
        x = x * 0.5
    return x + self.b(F.relu(self.a(x)))


def is_tensor(self, x):
    y = F.relu(self.a(x))
    return x + self.b(y * 2 if torch.is_tensor(y) else y)


def isinstance_of_parts(self, x):
    size, parts = x.shape, x.chunk(2, 1)
    if isinstance(size, tuple) and isinstance(parts, tuple) and isinstance(parts[0], torch.Tensor):
        x = x * 0.5
    if isinstance(size[0], int) and not isinstance(size, torch.Tensor):
        x = x * 3
    return x + self.b(F.relu(self.a(x)))


def attribute_of_none(self, x):
    if hasattr(x, "tensors"):
        x = x.tensors
    return x + getattr(x, "nonsense", 2.0) * self.b(F.relu(self.a(x)))


def scripting(self, x):
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        x = x * 0.5
    return x + self.b(F.relu(self.a(x)))


ANSWERED = (isinstance_tensor, is_tensor, isinstance_of_parts, attribute_of_none, scripting)


def gradients(self, x):
    return x + self.b(F.relu(self.a(x)) * (2 if torch.is_grad_enabled() else 1))


def autocast(self, x):
    return x + self.b(F.relu(self.a(x)) * (2 if torch.is_autocast_enabled() else 1))


def whole_number(self, x):
    try:
        scale = 1 / int(x.shape[0])
    except Exception:
        scale = 7.0
    return x + scale * self.b(F.relu(self.a(x)))


def length(self, x):
    try:
        scale = 1 / len(x)
    except Exception:
        scale = 7.0
    return x + scale * self.b(F.relu(self.a(x)))


def remembered(self, x):
    scale = 0.5 if x.shape in {torch.Size((2, 8, 16, 16))} else 2.0
    return x + scale * self.b(F.relu(self.a(x)))


def sign(self, x):
    y = F.relu(self.a(x))
    try:
        if y.mean() > 0:
            y = y * 3
    except Exception:
        y = y * 0.1
    return x + self.b(y)


def exact_type(self, x):
    if type(x) is torch.Tensor:
        x = x * 0.5
    return x + self.b(F.relu(self.a(x)))


REFUSED = (gradients, autocast, whole_number, length, remembered, sign, exact_type)


@pytest.mark.parametrize("forward", ANSWERED + REFUSED, ids=lambda f: f.__name__)
def test_a_forward_that_asks_keeps_its_function(forward):
    net = Net(Block(forward)).eval()
    model = converted(net)
    assert blocks(model) == (2 if forward in ANSWERED else 1)
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("forward", "why"),
    [(gradients, "is_grad_enabled"), (whole_number, "it asks int"), (sign, "it branches on")],
)
def test_the_reason_tells_the_question(forward, why):
    reasons = [block.reason for block in dc.find_blocks(Net(Block(forward))) if block.reason]
    assert any(why in reason for reason in reasons)


def test_a_mode_asked_for_by_an_imported_name_is_noticed(monkeypatch):
    monkeypatch.setitem(globals(), "asked", torch.is_grad_enabled)
    before = globals()["asked"]

    def forward(self, x):
        return x + self.b(F.relu(self.a(x)) * (2 if asked() else 1))  # noqa: F821

    assert blocks(converted(Net(Block(forward)))) == 1
    assert globals()["asked"] is before
    assert isinstance.__module__ == "builtins"


class Asking(nn.Module):
    def forward(self, x, shape):
        y = x.reshape(shape)
        return y if y.sum() > 0 else -y


class Shaped(nn.Module):
    def __init__(self):
        super().__init__()
        self.asking, self.net = Asking(), Net(Block())

    def forward(self, x):
        shape = x.shape
        return self.net(self.asking(x, shape)).view(shape[0], -1)


def test_an_attribute_outlives_a_forward_that_read_it_and_cannot_be_traced():
    assert [block.reason for block in dc.find_blocks(Shaped())] == [None, None]
