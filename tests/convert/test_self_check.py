"""`dynamize` compares what it made with the source, and leaves blocks dense that differ."""

import random
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dmnn_convert import ArgumentError, NoBlocksFoundError, dynamize, force_gates
from dmnn_convert.convert import deviation_of
from dmnn_convert.convert.self_check import culprits
from dmnn_convert.nn import conversion_of, tensors_in

SIZE = (8, 16, 16)
FACTOR = [0.5]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def branch(self, x):
        return self.b(F.relu(self.a(x)))

    def forward(self, x):
        return x + self.branch(x)


def is_real(x):
    """A question that no trace notices: it is not asked in a forward itself."""
    return type(x) is torch.Tensor


class Halved(Block):
    """Its branch is halved in real passes only: what a trace sees is another function."""

    def forward(self, x):
        y = self.branch(x)
        return x + (y * FACTOR[0] if is_real(x) else y)


class Flat(nn.Module):
    """Three blocks in one forward, and one that only a real pass halves."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = Block(), Halved(), Block()

    def forward(self, x):
        x = x + self.one.branch(x)
        x = self.two(x)
        return x + self.three.branch(x)


class LastDigits(nn.Module):
    """What rounding makes of a value, as an order of scores or a threshold may show it."""

    def __init__(self, digits):
        super().__init__()
        self.digits = digits

    def forward(self, x):
        return torch.floor(x * 10**self.digits).remainder(7)


def converted(net, **options):
    return dynamize(net.eval(), 2, split="exact", input_size=SIZE, **options)


def deviation(model, net):
    x = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), force_gates(model, True):
        return deviation_of(tensors_in(model(x.clone())), tensors_in(net(x.clone())))


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 7), (torch.float64, 15)])
def test_rounding_that_the_rest_amplifies_is_no_fault_of_the_blocks(dtype, digits):
    net = nn.Sequential(Block(), Block(), LastDigits(digits)).to(dtype)
    assert converted(net).table.blocks == ("0", "1")
    with_another = nn.Sequential(Block(), Halved(), Block(), LastDigits(digits)).to(dtype)
    assert converted(with_another).table.blocks == ("0", "2")


@pytest.mark.parametrize("inplace", [False, True])
def test_a_block_that_differs_stays_dense(inplace, caplog):
    net = nn.Sequential(Block(), Halved(), Block())
    images = torch.randn(2, *SIZE)
    with torch.no_grad():
        expected = net.eval()(images)
    model, table = converted(net, inplace=inplace)
    assert table.blocks == ("0", "2")
    assert "1 stays dense: converted, it gives another result (off by" in caplog.text
    with torch.no_grad(), force_gates(model, True):
        assert deviation_of([model(images)], [expected]) < 1e-5


def test_without_the_check_it_would_be_another_function():
    net = nn.Sequential(Block(), Halved(), Block())
    model, table = converted(net, verify=False)
    assert table.blocks == ("0", "1", "2")
    assert deviation(model, net) > 0.01
    with pytest.raises(ArgumentError, match="verify='no'"):
        converted(net, verify="no")


def test_of_blocks_in_one_forward_the_one_is_found():
    net = Flat()
    model, table = converted(net)
    assert len(table.blocks) == 2
    assert "two" not in table.blocks
    assert deviation(model, net) < 1e-5


def test_a_model_of_such_blocks_alone_is_refused_and_left_alone():
    net = nn.Sequential(Halved(), Halved()).eval()
    names, classes = list(net.state_dict()), [type(m) for m in net.modules()]
    with pytest.raises(NoBlocksFoundError, match="it gives another result"):
        converted(net, inplace=True)
    assert (list(net.state_dict()), [type(m) for m in net.modules()]) == (names, classes)


@pytest.mark.parametrize("guilty", [[], [3], [0, 5], [2, 3, 4]])
def test_bisection_finds_all(guilty):
    tried = []

    def differs(blocks):
        tried.append(list(blocks))
        return bool(set(guilty) & set(blocks))

    assert culprits(range(8), differs) == guilty
    assert len(tried) <= 1 + 6 * len(guilty)


def test_blocks_that_differ_only_together_are_all_refused():
    assert culprits([1, 2], lambda blocks: len(blocks) == 2) == [1, 2]


class Watched(nn.Module):
    """Counts its passes, draws random numbers, and has a hook."""

    def __init__(self):
        super().__init__()
        self.block, self.norm = Block(), nn.BatchNorm2d(8)
        self.register_buffer("passes", torch.zeros(()))
        self.hooked = 0
        self.block.a.register_forward_hook(self._hook)
        self.other = Block()

    def _hook(self, *_):
        self.hooked += 1

    def forward(self, x):
        self.passes += 1
        return self.norm(self.other(self.block(x)))


def test_the_source_and_the_random_numbers_stay_as_they_are():
    net = Watched().train()
    net.block.eval()
    modes = [m.training for m in net.modules()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    dynamize(net, 2, split="exact", input_size=SIZE, verify=False)
    drawn = torch.rand(1), random.random(), np.random.rand()
    torch.set_rng_state(before[0])
    random.setstate(before[1])
    np.random.seed(0)
    np_before = np.random.get_state()
    dynamize(net, 2, split="exact", input_size=SIZE)
    assert torch.equal(torch.rand(1), drawn[0])  # controllers draw, the check does not
    assert random.random() == drawn[1]
    assert all(np.array_equal(a, b) for a, b in zip(np_before, np.random.get_state(), strict=True))
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())
    assert net.hooked == 0
    assert len(net.block.a._forward_hooks) == 1


class Ends(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.block, self.end = Block(), end

    def forward(self, x, mask=None):
        y = self.block(x)
        return self.end(y if mask is None else y * mask)


@pytest.mark.parametrize(
    "end",
    [
        lambda y: {"out": y, "parts": [y * 2, (y, "name")]},
        lambda y: (y, None, y.mean()),
        lambda y: y.log(),
        lambda y: y.argmax(1),
        lambda y: y + torch.rand_like(y),
        lambda y: y / 0,
        lambda y: "no tensor",
    ],
    ids=["dict", "tuple", "nan", "integers", "random", "infinite", "nothing"],
)
def test_outputs_of_any_kind_are_compared(end):
    assert converted(Ends(end)).table.blocks == ("block",)


class Unsteady(nn.Module):
    """Its output tells every rounding error."""

    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, x):
        return torch.sin(self.block(x) * 1e5)


def test_rounding_is_no_mistake():
    assert converted(Unsteady()).table.blocks == ("block",)


def test_approximate_blocks_are_left_out_and_exact_ones_are_not():
    class Bottleneck(nn.Sequential):
        def __init__(self):
            layers = (nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
            super().__init__(*layers, nn.Conv2d(8, 8, 1))

        def forward(self, x):
            return x + super().forward(x)

    net = nn.Sequential(Bottleneck(), Halved(), Block())
    table = dynamize(net, 2, input_size=SIZE).table
    assert table.blocks == ("0", "2")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    net = nn.Sequential(Block(), Halved(), Block()).to(dtype)
    assert converted(net).table.blocks == ("0", "2")


def test_deviations():
    one, nan = torch.ones(2), torch.tensor([1.0, float("nan")])
    inf, minus = torch.tensor([1.0, float("inf")]), torch.tensor([1.0, -float("inf")])
    assert deviation_of([nan], [nan]) == deviation_of([inf], [inf]) == 0
    for got, expected in ((nan, one), (one, nan), (inf, nan), (inf, minus), (inf, one)):
        assert deviation_of([got], [expected]) == float("inf")
    assert deviation_of([one], [one[:1]]) == deviation_of([], [one]) == float("inf")
    assert deviation_of([one * 3], [one * 2]) == 0.5


class Hooked(nn.Module):
    """Returns what a hook of its own collects, but for a part that only a trace sees."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.found = Block(), Halved(), {}
        self.two.register_forward_hook(self.collect)

    def collect(self, module, args, output):
        self.found["y"] = output

    def forward(self, x):
        self.two(self.one(x))
        return self.found.pop("y")


def test_a_model_that_needs_its_hooks_is_checked(caplog):
    net = Hooked()
    model = converted(net).model
    assert "not checked" not in caplog.text
    assert deviation(model, net) < 1e-5


def test_a_conversion_that_does_not_run_is_bisected():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.rest = Block(), Block()

        def forward(self, x):
            x = self.one(x)
            if hasattr(x, "tensors"):
                x = x.tensors
            return x + self.rest.branch(x)

    net = Root()
    model = converted(net).model
    assert deviation(model, net) < 1e-5
    assert "one" in conversion_of(model).table.blocks


class Remembers(Block):
    """Its branch is halved from the second call on; what counts the calls is out of reach."""

    def forward(self, x):
        y = self.branch(x)
        return x + (y * FACTOR[0] if is_second_call(self) and is_real(x) else y)


CALLS = weakref.WeakKeyDictionary()


def is_second_call(module):
    if not isinstance(module.a.weight, torch.fx.Proxy):
        CALLS[module] = CALLS.get(module, 0) + 1
    return CALLS.get(module, 0) > 1


def test_a_second_call_is_compared_too(caplog):
    net = nn.Sequential(Block(), Remembers(), Block())
    assert converted(net).table.blocks == ("0", "2")
    assert "1 stays dense: converted, it gives another result" in caplog.text


def test_an_input_that_a_model_overwrites_is_the_same_for_both():
    class Overwriting(nn.Sequential):
        def forward(self, x):
            x += 1
            return super().forward(x)

    assert converted(Overwriting(Block(), Block())).table.blocks == ("0", "1")
