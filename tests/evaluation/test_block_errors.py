"""Block errors are zero where a split is exact, and measured one block at a time elsewhere."""

import copy

import pytest
import torch
from small_nets import IMAGE, NETS, basic_net, bottleneck_net, images, seasoned
from torch import nn

from dmnn_convert import ArgumentError, block_errors, dynamize, force_gates

EXACT = [("basic", "matched"), ("inverted", "matched"), ("bottleneck", "exact"), ("basic", "exact")]


@pytest.mark.parametrize(("kind", "split"), EXACT)
def test_exact_splits_make_no_error(kind, split):
    source = seasoned(NETS[kind]())
    model, _ = dynamize(source, 2, split=split, input_size=IMAGE)
    errors = block_errors(source, model, images(4))
    assert set(errors) == {"", "b1", "b2"}
    assert all(0 <= error < 1e-6 for error in errors.values())


def test_other_errors_are_those_of_each_block_alone():
    source = seasoned(bottleneck_net())
    model, _ = dynamize(source, 2, input_size=IMAGE)
    x = images(4)
    errors = block_errors(source, model, x)
    with torch.no_grad(), force_gates(model.eval(), True):
        first = source.stem(x)
        second = source.b1(first)
        pairs = {
            "b1": (model.b1(first), second),
            "b2": (model.b2(second), source.b2(second)),
            "": (model(x), source(x)),
        }
    assert set(errors) == set(pairs)
    for name, (got, expected) in pairs.items():
        by_hand = (got - expected).square().sum().sqrt() / expected.square().sum().sqrt()
        assert errors[name] == pytest.approx(by_hand.item(), rel=1e-4)
        assert errors[name] > 0.01


def test_gates_and_modes_do_not_matter():
    source = seasoned(bottleneck_net())
    model, _ = dynamize(source, 2, input_size=IMAGE)
    expected = block_errors(source, model, images(4))
    for name, parameter in model.named_parameters():
        if name.endswith("w3.bias"):
            nn.init.zeros_(parameter)
    assert block_errors(source.train(), model.train(), images(4)) == expected


@pytest.mark.parametrize("training", [True, False])
def test_neither_model_is_touched(training):
    source = seasoned(basic_net()).train(training)
    model = dynamize(source, 2, input_size=IMAGE).model.train(training)
    before = [copy.deepcopy(m.state_dict()) for m in (source, model)]
    block_errors(source, model, images(4))
    for m, state in zip((source, model), before, strict=True):
        assert all(torch.equal(v, state[name]) for name, v in m.state_dict().items())
        assert all(module.training is training for module in m.modules())
        assert not any(module._forward_hooks for module in m.modules())


class InDict(nn.Module):
    """Returns a dictionary, as detectors and segmentation networks do."""

    def __init__(self):
        super().__init__()
        self.net = basic_net()

    def forward(self, x):
        return {"out": self.net(x)}


def test_models_that_return_no_single_tensor_are_measured_too():
    source = seasoned(InDict())
    model, _ = dynamize(source, 2, input_size=IMAGE)
    errors = block_errors(source, model, images(4))
    assert {"net.b1", "net.b2"} <= set(errors)
    assert all(error < 1e-6 for error in errors.values())


def test_the_source_of_another_model_is_rejected():
    model, _ = dynamize(basic_net(), 2, input_size=IMAGE)
    with pytest.raises(ArgumentError, match="block_errors"):
        block_errors(nn.Sequential(nn.Conv2d(3, 8, 3)), model, images(2))


def test_models_must_be_converted():
    with pytest.raises(ArgumentError, match="dynamize"):
        block_errors(basic_net(), basic_net(), images(2))
