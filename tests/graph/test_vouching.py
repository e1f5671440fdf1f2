"""Operations that a user vouches for."""

import copy
import logging
import pickle

import pytest
import torch
import torch.nn.functional as F
from nets import images, off_by, randomised
from torch import nn

from dmnn_convert import ArgumentError, dynamize, find_blocks, force_gates, register_operation
from dmnn_convert.graph import operations, vouching

C, HIDDEN = 8, 12


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr(vouching, "_NAMES", {})
    monkeypatch.setattr(operations, "_BY_NAME", dict(operations._BY_NAME))


def clipped(x):
    return x.clamp(max=1) if x.max() > 1 else x


def scaled(x, weight):
    return x * weight if x.max() > 0 else x


def pooled(x):
    return F.avg_pool2d(x, 3, 1, 1) if x.max() > -9 else x


def softmaxed(x):
    return x.softmax(1) if x.max() > -9 else x


def centred(x):
    return x - x.mean(0, keepdim=True) if len(x) > 0 and x.max() > -9 else x


class Gate(nn.Module):
    """Its weight belongs to channels."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(HIDDEN))

    def forward(self, x):
        return x * self.weight[:, None, None] if x.max() > -9 else x


@torch.library.custom_op("dmnn_tests::act", mutates_args=())
def act(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x)


@act.register_fake
def _(x):
    return torch.empty_like(x)


class Block(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.a, self.b = nn.Conv2d(C, HIDDEN, 3, padding=1), nn.Conv2d(HIDDEN, C, 1)
        self.weight = nn.Parameter(torch.rand(1, HIDDEN, 1, 1))
        self.gate = operation() if isinstance(operation, type) else nn.Identity()


class Clipped(Block):
    def forward(self, x):
        return x + self.b(clipped(self.a(x)))


class Scaled(Block):
    def forward(self, x):
        return x + self.b(scaled(self.a(x), self.weight))


class Pooled(Block):
    def forward(self, x):
        return x + self.b(pooled(self.a(x)))


class Softmaxed(Block):
    def forward(self, x):
        return x + self.b(softmaxed(self.a(x)))


class Centred(Block):
    def forward(self, x):
        return x + self.b(centred(self.a(x)))


class Gated(Block):
    def forward(self, x):
        return x + self.b(self.gate(self.a(x)))


class Custom(Block):
    def forward(self, x):
        return x + self.b(act(self.a(x)))


class Packet(Block):
    def forward(self, x):
        return x + self.b(torch.ops.dmnn_tests.act(self.a(x)))


class Frac(Block):
    def forward(self, x):
        return x + self.b(torch.frac(self.a(x) * 3).frac())


def network(block, operation):
    torch.manual_seed(0)
    return randomised(nn.Sequential(nn.Conv2d(3, C, 1), block(operation), block(operation))).eval()


TRUE = {
    "pointwise": (Clipped, clipped, "pointwise", 0),
    "with a tensor of the model": (Scaled, scaled, "pointwise", 0),
    "channelwise": (Pooled, pooled, "channelwise", 0),
    "computed whole": (Softmaxed, softmaxed, "per-image", 1),
    "a module": (Gated, Gate, "channelwise", 0),
    "a custom operator": (Custom, act, "pointwise", 0),
    "an operator by its name": (Packet, torch.ops.dmnn_tests.act, "pointwise", 0),
    "PyTorch's, also as a method": (Frac, torch.frac, "pointwise", 0),
}


@pytest.mark.parametrize("name", TRUE)
def test_blocks_with_it_convert_and_are_exact(name):
    kind, operation, word, trunks = TRUE[name]
    source = network(kind, operation)
    assert all(block.reason for block in find_blocks(source))
    register_operation(operation, word)
    model, table = dynamize(source, split="exact", input_size=(3, 6, 6))
    assert len(table.blocks) == 2 and len(table.trunks) == 2 * trunks
    x = images(source, (3, 6, 6), batch=3)
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad(), force_gates(each, True):
            assert off_by(each(x), source(x)) <= 1e-5


FALSE = {
    "mixes channels": (Softmaxed, softmaxed, "pointwise", "another result"),
    "mixes images": (Centred, centred, "per-image", "centred was registered, but an image's"),
}


@pytest.mark.parametrize("name", FALSE)
def test_what_is_not_true_leaves_its_blocks_dense(name, caplog):
    kind, operation, word, reason = FALSE[name]
    register_operation(operation, word)
    plain = nn.Sequential(nn.Conv2d(C, HIDDEN, 1), nn.ReLU(), nn.Conv2d(HIDDEN, C, 1))

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = plain

        def forward(self, x):
            return x + self.body(x)

    source = network(kind, operation).append(Plain())
    with caplog.at_level(logging.WARNING):
        _, table = dynamize(source, split="exact", input_size=(3, 6, 6))
    assert table.blocks == ("3",)
    assert caplog.text.count(reason) >= 2


def test_a_custom_operator_is_not_what_its_name_says():
    lib = torch.library.Library("dmnn_tests", "FRAGMENT")
    lib.define("relu(Tensor x) -> Tensor")
    lib.impl("relu", lambda x: x.softmax(1), "CompositeImplicitAutograd")

    class Named(Block):
        def forward(self, x):
            return x + self.b(torch.ops.dmnn_tests.relu(self.a(x)))

    reasons = [block.reason for block in find_blocks(network(Named, None))]
    assert all("not known to treat every image by itself" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("operation", "kind", "words"),
    [
        (clipped, "linear", "choose one of 'pointwise', 'channelwise', 'per-image'"),
        (clipped, None, "choose one of"),
        (nn.ReLU(), "pointwise", "give its class, ReLU"),
        (nn.ReLU, "pointwise", "not yours to vouch for"),
        (dict, "pointwise", "expected a subclass of nn.Module"),
        ("relu", "pointwise", "expected a function"),
        (lambda x: x, "pointwise", "define it with def"),
        (Gate().forward, "pointwise", "by a name"),
        (torch.relu, "pointwise", "relu is known already"),
        (torch.ops.aten.relu, "pointwise", "give PyTorch's function"),
    ],
)
def test_bad_input(operation, kind, words):
    with pytest.raises(ArgumentError, match=words):
        register_operation(operation, kind)
