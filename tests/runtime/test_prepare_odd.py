"""Odd roots, arguments and images: prepared models equal the model, or say why they cannot."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from quick import slow_unless
from small_nets import IMAGE, Net, basic
from torch import nn

from dmnn_convert import ArgumentError, dynamize, force_gates, prepare
from dmnn_convert.convert import deviation_of


class Masks(Net):
    """A root with an optional tensor and a number."""

    def forward(self, x, mask=None, scale=1.0):
        y = super().forward(x) * scale
        return y if mask is None else y * mask


class Asks(Net):
    def forward(self, x):
        y = super().forward(x)
        return y * 0.5 if type(x) is torch.Tensor else y


class Views(nn.Module):
    """Flattens a map as many tutorials do."""

    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3, padding=1), basic(8, 8)
        self.head = nn.Linear(8 * 64, 5)

    def forward(self, x):
        y = self.block(self.stem(x))
        return self.head(y.view(y.size(0), -1))


class Maps(Net):
    """Keeps places apart, so that NaN spreads no farther than it must."""

    def forward(self, x):
        return self.b2(self.b1(F.relu(self.stem(x))))


def converted(cls):
    torch.manual_seed(0)
    net = cls() if cls is Views else cls(basic(8, 8), basic(8, 16))
    return dynamize(net.eval(), 2, split="exact", input_size=IMAGE, verify=False).model.eval()


def images(count=2):
    return torch.randn(count, *IMAGE, generator=torch.Generator().manual_seed(1))


def fast(model):
    return prepare(model, images(1), autotune=False)


def same(a, b):
    return torch.allclose(a, b, atol=1e-5, equal_nan=True)


def test_an_optional_argument_is_not_dropped():
    model = converted(Masks)
    prepared, x = fast(model), images()
    with torch.no_grad():
        assert same(prepared(x, None, scale=1.0), model(x))
    for args, kwargs in (((torch.zeros(5),), {}), ((), {"mask": torch.zeros(5)}), ((None, 2), {})):
        with pytest.raises(ArgumentError, match="only, as it was prepared; call the model"):
            prepared(x, *args, **kwargs)


def test_a_root_that_tracing_misreads_runs_as_it_is():
    model, x = converted(Asks), images()
    with torch.no_grad(), force_gates(model, True):
        assert same(fast(model)(x), model(x))


def test_a_forward_of_the_instance_is_taken():
    model, x = converted(Net), images()
    own = model.forward
    model.forward = lambda x: own(x) * 3
    with torch.no_grad():
        assert same(fast(model)(x), model(x))


def test_a_layer_with_a_forward_of_its_own_is_taken():
    model, x = converted(Net), images()
    own = model.stem.forward
    model.stem.forward = lambda x: own(x).abs() + 1
    with torch.no_grad():
        assert same(fast(model)(x), model(x))


@pytest.mark.parametrize("opaque", [False, True], ids=["traced", "opaque"])
def test_a_view_of_a_map(opaque, monkeypatch):
    model, x = converted(Views), images()
    if opaque:
        own = model.forward
        model.forward = lambda x: own(x)
    with torch.no_grad():
        assert same(fast(model)(x), model(x))


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf"), 3e38], ids=str)
@pytest.mark.parametrize(
    ("net", "gates"),
    slow_unless(
        lambda net, gates: (net, gates) == (Maps, 0.5),
        itertools.product([Net, Maps], [None, True, False, 0.5]),
    ),
)
def test_what_is_no_number_stays_none(odd, net, gates):
    model, x = converted(net), images(3)
    x[1, 0, 2, 3] = odd
    prepared = fast(model)
    with torch.no_grad():
        if gates is None:
            expected, got = model(x), prepared(x)
        else:
            with force_gates(model, gates):
                expected = model(x)
            with force_gates(prepared, gates):
                got = prepared(x)
    assert odd == 3e38 or not expected.isfinite().all()
    pairs = zip(got.split(1), expected.split(1), strict=True)
    assert max(deviation_of([a], [b]) for a, b in pairs) < 1e-5


def test_a_model_that_needs_more_than_images_is_told_so():
    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x, time):
            return self.conv(x).mean((2, 3)) * time

    with pytest.raises(ArgumentError, match="a module whose forward takes the images alone"):
        prepare(Conditioned().eval(), torch.ones(1, 3, 4, 4))
