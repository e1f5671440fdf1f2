"""Activations of the user's own that are autograd Functions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from idioms import Net, block
from torch import nn

from dmnn_convert import dynamize, find_blocks, force_gates, set_execution
from dmnn_convert.graph.own_activations import activation_behind


def function(values, slope=1.0):
    """An activation whose backward pass is written by hand, perhaps on purpose another one."""

    class Written(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return values(x)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                (own,) = torch.autograd.grad(values(x), x, grad)
            return slope * own

    return Written


def activation(values, **options):
    written = function(values, **options)

    class Activation(nn.Module):
        def forward(self, x):
            return written.apply(x)

    return Activation


def swish(x):
    return x * torch.sigmoid(x)


Swish = activation(swish)


@pytest.mark.parametrize(
    ("made", "base"),
    [
        (Swish, nn.SiLU),
        (activation(F.mish), nn.Mish),
        (activation(lambda x: x * torch.sigmoid(1.01 * x)), None),
        (activation(lambda x: swish(x) + 1e-3), None),
        (activation(lambda x: swish(x).flip(-1)), None),
        (nn.SiLU, None),
        (nn.Identity, None),
    ],
)
def test_it_is_known_by_its_values(made, base):
    assert activation_behind(made()) is base


def test_one_that_is_more_than_its_function_is_not_known():
    class Twice(Swish):
        def forward(self, x):
            return super().forward(super().forward(x))

    class Held(Swish):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    assert activation_behind(Twice()) is None
    assert activation_behind(Held()) is None


def network(act):
    torch.manual_seed(0)
    make = block(lambda self, x: x + self.b(self.act(self.a(x))), act=act)
    return Net(make(), make())


@pytest.mark.parametrize("split", ["exact", "nested"])
def test_blocks_with_it_convert_and_keep_its_own_backward_pass(split):
    source = network(activation(swish, slope=0.5)).train()
    model, _ = dynamize(source, N=2, split=split, input_size=(3, 12, 12))
    set_execution(model, "masked")
    images = torch.randn(3, 3, 12, 12)
    stems = []
    for each in (copy.deepcopy(source), model):
        with force_gates(each, True) if each is model else torch.enable_grad():
            each.train()(images).square().sum().backward()
        stems.append(each.stem.weight.grad)
    torch.testing.assert_close(stems[1], stems[0])
    other = network(Swish)
    other(images).square().sum().backward()
    assert not torch.allclose(other.stem.weight.grad, stems[0])


def test_what_has_other_values_stays_dense():
    assert all(b.reason for b in find_blocks(network(activation(lambda x: x.tanh() * x))))
