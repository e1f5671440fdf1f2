"""An input size on which a model does not run is answered with one on which it does."""

import copy

import pytest
import torch
from nets import conv_norm
from quick import one_in
from small_nets import ResidualReLU, basic, basic_net
from torch import nn

from dmnn_convert import ArgumentError, dynamize, force_gates
from dmnn_convert.dryrun.input_size import SIZES, smallest_size


def headed(*head):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), basic(8, 16, stride=2), *head)


def volumes():
    body = [*conv_norm(8, 8, dims=3), nn.ReLU(), *conv_norm(8, 8, dims=3)]
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1), ResidualReLU(nn.Sequential(*body)), nn.AvgPool3d(5)
    )


NETS = {
    "pool": (lambda: headed(nn.AvgPool2d(8)), (3, 8, 8), (3, 15, 15)),
    "valid": (lambda: headed(nn.Conv2d(16, 4, 9)), (3, 8, 8), (3, 17, 17)),
    "classifier": (
        lambda: headed(nn.Flatten(), nn.Linear(16 * 14 * 14, 5)),
        (3, 32, 32),
        (3, 27, 27),
    ),
    "mirrored": (lambda: nn.Sequential(nn.ReflectionPad2d(9), headed()), (3, 8, 8), (3, 10, 10)),
    "oblong": (lambda: headed(nn.AvgPool2d(8)), (3, 8, 64), (3, 15, 15)),
    "volumes": (volumes, (3, 4, 4, 4), (3, 5, 5, 5)),
}


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("name", one_in(3, NETS))
def test_the_smallest_size_that_works_is_named(name, inplace):
    make, given, smallest = NETS[name]
    source = make().eval()
    before = {k: v.clone() for k, v in source.state_dict().items()}
    with pytest.raises(ArgumentError) as caught:
        dynamize(source, input_size=given, inplace=inplace)
    assert f"dynamize(input_size={given})" in str(caught.value)
    assert f"found to work is {'×'.join(map(str, smallest[1:]))}" in str(caught.value)
    assert list(source.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in source.state_dict().items())
    one_less = (1, smallest[0], *(side - 1 for side in smallest[1:]))
    source(torch.zeros(1, *smallest))
    with pytest.raises(RuntimeError):
        source(torch.zeros(one_less))
    dynamize(source, input_size=smallest)


def test_nothing_is_claimed_where_no_size_is_found():
    model = headed(nn.Flatten(), nn.Linear(16 * 7 * 7 + 1, 5))
    with pytest.raises(ArgumentError, match=r"Give the shape of one image.*reads 3 channels") as e:
        dynamize(model, input_size=(3, 32, 32))
    assert "found to work" not in str(e.value)


@pytest.mark.parametrize("size", [(1, 8, 8), (8, 8), (3, 8), (1, 3, 8, 8)])
def test_other_mistakes_keep_their_words(size):
    with pytest.raises(ArgumentError, match="its first convolution reads 3 channels") as caught:
        dynamize(headed(nn.AvgPool2d(8)), input_size=size)
    assert "found to work" not in str(caught.value)


class Only(nn.Module):
    """Runs on the meta device only, and on images of some sizes only."""

    def __init__(self, works):
        super().__init__()
        self.works, self.conv = works, nn.Conv2d(3, 3, 1)

    def forward(self, x):
        if not x.is_meta or not self.works(x.shape[-1]):
            raise RuntimeError("no")
        return self.conv(x)


@pytest.mark.parametrize("smallest", [1, 2, 8, 9, 63, 224, 257, 511, 512])
def test_the_search_is_short(smallest):
    tried = []

    def works(side):
        tried.append(side)
        return side >= smallest

    assert smallest_size(Only(works), 3, 2) == (3, smallest, smallest)
    assert len(tried) == len(set(tried)) <= len(SIZES) + 7


def test_a_size_beyond_those_tried_is_not_found():
    assert smallest_size(Only(lambda side: side > max(SIZES)), 3, 2) is None


class ByValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = basic_net()

    def forward(self, x):
        return self.net(x) if x.sum() >= 0 else x


def test_a_model_that_needs_values_claims_nothing():
    assert smallest_size(ByValue(), 3, 2) is None


def test_a_model_of_two_inputs_converts_through_a_wrapper():
    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = headed()

        def forward(self, x, t):
            return self.net(x) * t[:, None, None, None]

    class Example(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x, torch.zeros(len(x)))

    source = Timed().eval()
    with pytest.raises(ArgumentError, match=r"also needs t.*dynamize\(wrapper, inplace=True\)"):
        dynamize(source, input_size=(3, 8, 8))
    model = copy.deepcopy(source)
    dynamize(Example(model), split="exact", input_size=(3, 8, 8), inplace=True)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0])
    with force_gates(model, True):
        torch.testing.assert_close(model(x, t), source(x, t))
