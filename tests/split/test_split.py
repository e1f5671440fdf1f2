"""Sub-blocks share out the hidden channels, cost as much as the block, keep the best of it."""

import copy
import itertools

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS, Residual, conv_norm, dense_bottleneck, images, off_by, randomised
from quick import one_in, slow_unless
from random_choice import random_choice
from torch import Tensor, nn
from torchvision import models

import dmnn_convert.split.matched
from dmnn_convert import dynamize, find_blocks, force_gates, gate_parameters
from dmnn_convert.errors import NoBlocksFoundError
from dmnn_convert.nn import multi_path_blocks
from dmnn_convert.split import matched_widths
from dmnn_convert.split.select import energy_choice, index_choice, lost_energy
from dmnn_convert.split.widths import BottleneckShape

SMALL = (3, 64, 64)


def build(name):
    if name in NETS:
        return randomised(NETS[name].build())
    make = timm.create_model if name.startswith("timm:") else models.get_model
    return make(name.removeprefix("timm:"))


def size_of(name):
    return NETS[name].size if name in NETS else SMALL


def count(parameters):
    return sum(p.numel() for p in parameters)


def convolutions(module):
    return [m for m in module.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)]


# --- parameters -------------------------------------------------------------------------------

PAPER = {
    ("resnet50", 2): (25_557_032, 25_455_208),
    ("resnet50", 3): (25_557_032, 25_568_676),
    ("resnet50", 4): (25_557_032, 25_383_592),
    ("resnet101", 2): (44_549_160, 44_521_320),
}
MATCHED_WIDTHS = {2: 40, 3: 30, 4: 24}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "N"), PAPER)
def test_matched_split_has_the_papers_parameters_and_widths(name, N):
    model, table = dynamize(build(name), N, input_size=SMALL)
    assert (table.dense_params, table.params) == PAPER[name, N]
    assert count(model.parameters()) == table.params + count(gate_parameters(model))
    for block, found in zip(multi_path_blocks(model), find_blocks(build(name)), strict=True):
        stage = found.hidden // 64
        widths = {tuple(c.out_channels for c in convolutions(s)) for s in block.sub_blocks}
        width = MATCHED_WIDTHS[N] * stage
        assert widths == {(width, width, found.widths[-1])}


@pytest.mark.parametrize(
    ("name", "N"),
    slow_unless(
        lambda name, N: name == "timm:resnet26d" and N == 3,
        itertools.product(["resnet50", "wide_resnet50_2", "timm:resnet26d"], (2, 3, 4, 8)),
    ),
)
def test_matched_split_is_within_one_percent(name, N):
    source = build(name)
    blocks = [b for b in find_blocks(source) if b.kind == "bottleneck"]
    shapes = [BottleneckShape(*b.widths) for b in blocks]
    parameters = count(source.parameters())
    widths = matched_widths(shapes, [N] * len(shapes), parameters)
    change = sum(
        b.parameters(*w, N) - b.parameters(b.c1, b.c2) for b, w in zip(shapes, widths, strict=True)
    )
    assert len(shapes) == len(blocks) > 0
    assert abs(change) <= 0.01 * parameters
    if N == 8:  # the others are converted elsewhere
        _, table = dynamize(source, N, input_size=SMALL)
        assert table.params == parameters + change


EXACT = ("resnet18", "resnet50", "mobilenet_v2", "resnext50_32x4d", "timm:resnet26d")
OWN = ("option_a", "chain", "grouped", "odd_width", "functional", "root_held", "conv3d")


@pytest.mark.parametrize(
    ("name", "N"),
    slow_unless(
        lambda name, N: N == 3 and name in ("chain", "functional", "bottlenecks"),
        itertools.product([*EXACT, *OWN], (2, 3)),
    ),
)
def test_exact_split_costs_the_copies_of_the_tail_norms_alone(name, N):
    source = build(name)
    dense = count(source.parameters())
    tail_norms = sum(2 * block.widths[-1] for block in find_blocks(source) if block.split)
    model, table = dynamize(source, N, split="exact", input_size=size_of(name))
    assert table.dense_params == dense
    assert table.params == dense + (N - 1) * tail_norms
    assert count(model.parameters()) == table.params + count(gate_parameters(model))


def test_preactivation_costs_nothing_at_all():
    source = build("preactivation")
    _, table = dynamize(source, 4, input_size=size_of("preactivation"))
    assert table.params == count(source.parameters())


# --- the partition ----------------------------------------------------------------------------


def expansion(hidden, groups, depthwise_kernel=3):
    middle = []
    if groups:
        middle = [*conv_norm(hidden, hidden, depthwise_kernel, groups=groups), nn.ReLU()]
    body = nn.Sequential(*conv_norm(6, hidden), nn.ReLU(), *middle, *conv_norm(hidden, 6))
    return randomised(nn.Sequential(conv_norm(3, 6), Residual(body)))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_hidden_unit_is_in_exactly_one_sub_block(data):
    units = data.draw(st.integers(2, 24), label="units")
    width = data.draw(st.integers(1, 3), label="channels a unit")
    grouped = data.draw(st.booleans(), label="grouped")
    N = data.draw(st.integers(2, min(units, 8)), label="N")
    hidden = units * width if grouped else units
    width = width if grouped else 1
    source = expansion(hidden, units if grouped else 0).eval()
    block = multi_path_blocks(dynamize(source, N, input_size=(3, 6, 6)).model)[0]
    body = convolutions(source[1].body)
    parts = [convolutions(sub_block) for sub_block in block.sub_blocks]
    widths = [convs[0].out_channels for convs in parts]
    assert len(parts) == N
    assert all(w % width == 0 for w in widths)
    assert max(widths) - min(widths) <= width
    for i, source_conv in enumerate(body[:-1]):
        assert torch.equal(torch.cat([convs[i].weight for convs in parts]), source_conv.weight)
    columns = torch.cat([convs[-1].weight for convs in parts], 1)
    assert torch.equal(columns, body[-1].weight)
    if grouped:
        assert [convs[1].groups * width for convs in parts] == widths
    for sub_block in block.sub_blocks:
        norms = [m.num_features for m in sub_block.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms == [c.out_channels for c in convolutions(sub_block)]


@pytest.mark.parametrize(
    ("hidden", "N", "expected"),
    [(64, 3, [22, 21, 21]), (64, 8, [8] * 8), (10, 4, [3, 3, 2, 2]), (10, 10, [1] * 10)],
)
def test_uneven_widths(hidden, N, expected):
    block = multi_path_blocks(dynamize(expansion(hidden, 0), N, input_size=(3, 6, 6)).model)[0]
    assert [convolutions(s)[0].out_channels for s in block.sub_blocks] == expected


def test_too_many_sub_blocks_leave_that_block_dense():
    source = nn.Sequential(expansion(4, 0), *expansion(8, 0)[1:])
    model, table = dynamize(source, 8, input_size=(3, 6, 6))
    assert table.blocks == ("1",)
    assert table.sizes == (8,)
    assert [type(m) for m in model[0].modules()] == [type(m) for m in source[0].modules()]


@pytest.mark.parametrize("split", ["exact", "matched"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: expansion(8, 2),
        lambda: expansion(4, 0),
        lambda: nn.Sequential(conv_norm(3, 16), dense_bottleneck(16, 4)),
    ],
)
def test_too_many_sub_blocks_everywhere_is_explained(make, split):
    with pytest.raises(NoBlocksFoundError, match=r"fewer .*than 5 sub-blocks"):
        dynamize(make(), 5, split=split, input_size=(3, 6, 6))


# --- the choice of channels -------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    c1=st.integers(4, 40),
    c2=st.integers(4, 40),
    N=st.integers(2, 4),
    seed=st.integers(0, 1000),
    share=st.floats(0.5, 1.0),
)
def test_every_middle_channel_is_held_and_no_width_is_exceeded(c1, c2, N, seed, share):
    widths = (max(1, int(c1 * share)), max(-(-c2 // N), int(c2 * share)))
    generator = torch.Generator().manual_seed(seed)
    coupling = torch.rand(c2, c1, generator=generator) ** 4
    choices = {
        "energy": energy_choice(coupling, widths, N),
        "index": index_choice(c1, c2, widths, N),
        "random": random_choice(c1, c2, widths, N, generator),
    }
    for choice in choices.values():
        for sets, channels, width in (
            (choice.first, c1, widths[0]),
            (choice.second, c2, widths[1]),
        ):
            assert len(sets) == N
            assert all(len(s) == len(s.unique()) == width for s in sets)
            assert all(s.min() >= 0 and s.max() < channels for s in sets)
        assert choice.copies(c2).min() >= 1
    lost = {name: lost_energy(coupling, choice) for name, choice in choices.items()}
    assert 0 <= lost["energy"] <= lost["index"] + 1e-6
    assert lost["index"] <= 1 + 1e-6


def planted(hidden=32, N=2, seed=0):
    """A bottleneck whose hidden channels hang together in N shuffled groups."""
    net = randomised(nn.Sequential(conv_norm(3, 64), dense_bottleneck(64, hidden)), seed).eval()
    middle = convolutions(net[1].body)[1]
    group = torch.randperm(hidden, generator=torch.Generator().manual_seed(seed)) % N
    with torch.no_grad():
        middle.weight.mul_((group[:, None] == group[None, :])[..., None, None])
    return net


def error_of(source: nn.Module, x: Tensor, N: int = 2) -> float:
    model, _ = dynamize(source, N, input_size=tuple(x.shape[1:]))
    with torch.no_grad(), force_gates(model, True):
        return float((model(x) - source(x)).norm() / source(x).norm())


def use_index(monkeypatch):
    def choose(coupling, widths, N):
        return index_choice(coupling.shape[1], coupling.shape[0], widths, N)

    monkeypatch.setattr(dmnn_convert.split.matched, "energy_choice", choose)


def use_random(monkeypatch, seed):
    generator = torch.Generator().manual_seed(seed)

    def choose(coupling, widths, N):
        return random_choice(coupling.shape[1], coupling.shape[0], widths, N, generator)

    monkeypatch.setattr(dmnn_convert.split.matched, "energy_choice", choose)


@pytest.mark.parametrize("N", slow_unless((3).__eq__, [2, 3]))
def test_planted_structure_is_found(N, monkeypatch):
    source = planted(48, N)
    x = images(source, (3, 16, 16))
    by_energy = error_of(source, x, N)
    use_index(monkeypatch)
    by_index = error_of(source, x, N)
    by_chance = []
    for seed in range(3):
        use_random(monkeypatch, seed)
        by_chance.append(error_of(source, x, N))
    assert by_energy < 0.5 * by_index
    assert by_energy < 0.5 * min(by_chance)


def test_one_narrower_bottleneck_of_full_width_is_the_block():
    source = randomised(nn.Sequential(conv_norm(3, 64), dense_bottleneck(64, 16))).eval()
    x = images(source, (3, 16, 16))
    model, _ = dynamize(source, 1, input_size=(3, 16, 16))
    with torch.no_grad(), force_gates(model, True):
        assert off_by(model(x), source(x)) <= 1e-4


# --- what is inherited ------------------------------------------------------------------------


@pytest.mark.parametrize("split", slow_unless("exact".__eq__, ["matched", "exact"]))
@pytest.mark.parametrize(
    "name", one_in(2, ["bottlenecks", "chain", "functional", "root_held", "preactivation"])
)
def test_precision_and_frozen_parameters_are_inherited(name, split):
    source = build(name).double()
    frozen = {
        n for n, _ in source.named_parameters() if "bias" in n or "beta" in n or "0.weight" in n
    }
    for parameter_name, parameter in source.named_parameters():
        parameter.requires_grad_(parameter_name not in frozen)
    model, _ = dynamize(source, split=split, input_size=size_of(name))
    own = {id(p) for p in gate_parameters(model)}
    kept = [p for p in model.parameters() if id(p) not in own]
    assert frozen
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert {p.requires_grad for p in kept} == {True, False}
    assert all(p.requires_grad for p in gate_parameters(model))
    everything = copy.deepcopy(source).requires_grad_(False)
    still = dynamize(everything, split=split, input_size=size_of(name)).model
    own = {id(p) for p in gate_parameters(still)}
    assert not any(p.requires_grad for p in still.parameters() if id(p) not in own)


# --- a network that has learned something -----------------------------------------------------


class DigitsNet(nn.Module):
    """A small ResNet of bottlenecks for 8×8 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(1, 64), nn.ReLU())
        self.blocks = nn.Sequential(
            *(nn.Sequential(dense_bottleneck(64, 16), nn.ReLU()) for _ in range(4))
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def learned():
    """The net, trained on three quarters of the digits, and the rest of them."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(digits.target)
    torch.manual_seed(0)
    order = torch.randperm(len(x))
    train, test = order[:1350], order[1350:]
    model = DigitsNet()
    epochs = 15
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        schedule.step()
    return model.eval(), x[test], y[test]


@pytest.mark.slow
def test_energy_keeps_more_of_a_trained_network_than_chance(learned, monkeypatch):
    source, x, y = learned

    def measured():
        model, _ = dynamize(source, 2, input_size=(1, 8, 8))
        with torch.no_grad(), force_gates(model, True):
            logits = model(x)
            error = float((logits - source(x)).norm() / source(x).norm())
        return error, float((logits.argmax(1) == y).float().mean())

    with torch.no_grad():
        assert (source(x).argmax(1) == y).float().mean() > 0.95
    error, accuracy = measured()
    use_index(monkeypatch)
    index_error, index_accuracy = measured()
    by_chance = []
    for seed in range(3):
        use_random(monkeypatch, seed)
        by_chance.append(measured())
    errors, accuracies = zip(*by_chance, strict=True)
    assert error < index_error
    assert accuracy > index_accuracy
    assert error < sum(errors) / 3
    assert accuracy > sum(accuracies) / 3
