"""The FLOPs table: counted by hand, by fvcore, and while the network really runs."""

import functools

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import fvcore_macs
from quick import slow_unless
from small_nets import IMAGE, NETS, basic_net, bottleneck_net, images, random_gates, seasoned
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dmnn_convert import (
    ArgumentError,
    FlopsTable,
    GateMismatchError,
    dynamize,
    force_gates,
    gate_parameters,
    set_execution,
)
from dmnn_convert.dryrun import count, measure
from dmnn_convert.flops.rows import FixedRow, Row, Trunk
from dmnn_convert.graph import running_copy
from dmnn_convert.nn import conversion_of

SHAPE = (1,)


@functools.cache
def source_macs(arch, size):
    return fvcore_macs(getattr(torchvision.models, arch)(), size)


def made(trunk=True):
    """Block a: 10 + 20 MACs. Block b: 3 + 4 + 5 MACs and a trunk of 100. Always: 1000 + 7."""
    trunks = (Trunk("b", 100, 5),) if trunk else ()
    macs = [("a", 0, 10), ("a", 1, 20), ("b", 0, 3), ("b", 1, 4), ("b", 2, 5)]
    rows = tuple(Row(b, n, m, m, SHAPE, SHAPE, int(b == "b")) for b, n, m in macs)
    fixed = (FixedRow("stem", 1000, 50), FixedRow("controllers", 7, 9))
    return FlopsTable(rows, trunks, fixed, 2000, 77, (1, 1))


# --- tables written by hand -------------------------------------------------------------------


def test_sums():
    table = made()
    assert (table.fixed, table.gated, table.total) == (1007, 142, 1149)
    assert (table.controllers, table.params) == (7, 42 + 5 + 50)
    assert table.blocks == ("a", "b")
    assert table.sizes == (2, 3)
    assert table.stages == (0, 1)


@pytest.mark.parametrize(
    ("gates", "expected"),
    [
        ([0, 0, 0, 0, 0], 0),
        ([1, 0, 0, 0, 0], 10),
        ([1, 1, 0, 0, 0], 30),
        ([0, 0, 0, 0, 1], 105),
        ([0, 1, 1, 0, 1], 128),
        ([1, 1, 1, 1, 1], 142),
    ],
)
def test_a_trunk_counts_once_if_any_of_its_sub_blocks_runs(gates, expected):
    table, batch = made(), torch.tensor([gates, [0] * 5], dtype=torch.float32)
    assert table.flops(batch).tolist() == [expected, 0]
    assert table.network_flops(batch).tolist() == [expected + 1007, 1007]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.float32])
def test_counts_are_exact_for_gates_of_any_dtype(dtype):
    big = 2**40 + 1
    rows = tuple(Row("a", n, big, 1, SHAPE, SHAPE, 0) for n in range(2))
    table = FlopsTable(rows, (Trunk("a", big, 1),), (), 0, 0, SHAPE)
    assert table.flops(torch.ones(1, 2, dtype=dtype)).item() == 3 * big


def test_the_gradient_is_that_of_the_formula():
    gates = torch.rand(4, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(made().flops, gates)
    assert torch.autograd.gradcheck(made().network_flops, gates)


def test_the_gradient_with_hard_gates_by_hand():
    gates = torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], requires_grad=True)
    made().flops(gates).sum().backward()
    # The trunk's only running sub-block could save it; where none runs, each would start it.
    assert gates.grad.tolist() == [[10, 20, 103, 4, 5], [10, 20, 103, 104, 105]]


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 6), (1, 2, 5), ()])
def test_gates_of_another_model_are_rejected(shape):
    with pytest.raises(GateMismatchError, match=r"\(B, 5\)"):
        made().flops(torch.ones(shape))


@pytest.mark.parametrize("table", [made(), made(trunk=False)])
def test_survives_json(table):
    again = FlopsTable.from_json(table.to_json())
    assert again == table
    assert hash(again) == hash(table)
    assert again.sizes == table.sizes


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"rows": [{"block": "a"}]}'])
def test_other_json_is_rejected(text):
    with pytest.raises(ArgumentError, match="from_json"):
        FlopsTable.from_json(text)


def test_is_printed_in_columns():
    text = str(made())
    header, *lines = text.splitlines()
    for title, column in (("MACs", 2), ("params", 3)):
        end = header.index(title) + len(title)
        cells = [line[:end].split()[-1] for line in lines if len(line) >= end]
        assert all(cell.replace(",", "").isdigit() for cell in cells), text
        assert len(cells) >= (9 if column == 2 else 8)
    assert [line.split()[:3] for line in lines[2:4]] == [["b", "trunk", "100"], ["b", "0", "3"]]
    assert lines[-2].split() == ["total", "all", "on", "1,149"]
    assert lines[-1].split() == ["source", "2,000", "77"]


# --- converted nets, by hand ------------------------------------------------------------------


def test_a_basic_net_by_hand():
    _, table = dynamize(basic_net(), 2, input_size=IMAGE)
    one = 4 * 8 * 9 * 64 + 8 * 4 * 9 * 64
    two = 8 * 8 * 9 * 16 + 16 * 8 * 9 * 16
    assert [row.macs for row in table.rows] == [one, one, two, two] == [36864] * 2 + [27648] * 2
    assert [row.params for row in table.rows] == [288 + 8 + 288 + 16] * 2 + [
        576 + 16 + 1152 + 32
    ] * 2
    assert [(row.block, row.sub_block) for row in table.rows] == [
        ("b1", 0),
        ("b1", 1),
        ("b2", 0),
        ("b2", 1),
    ]
    shapes = [(row.input_shape, row.output_shape) for row in table.rows[1:3]]
    assert shapes == [((8, 8, 8), (8, 8, 8)), ((8, 8, 8), (16, 4, 4))]
    assert table.stages == (0, 1)
    assert table.trunks == ()
    first, second = 8 * 32 + 32 * 4, 8 * 32 + 32 * 32 + 32 * 4
    assert {row.name: (row.macs, row.params) for row in table.fixed_rows} == {
        "stem": (8 * 3 * 9 * 64, 8 * 27 + 8),
        "b2.down": (16 * 8 * 16, 16 * 8 + 32),
        "fc": (80, 85),
        "controllers": (first + second, first + 4 + second + 4),
    }
    assert table.controllers == 1792
    assert table.dense_total == 13824 + 2 * 36864 + 2 * 27648 + 2048 + 80 == 144_976
    assert table.total == table.dense_total + table.controllers


def test_a_shared_trunk_by_hand():
    model, table = dynamize(bottleneck_net(), 2, split="exact", input_size=IMAGE)
    assert table.trunks == (Trunk("b1", 8 * 8 * 64, 64 + 16), Trunk("b2", 8 * 16 * 64, 128 + 16))
    sub_block = 4 * 8 * 9 * 64 + 16 * 4 * 64
    assert [row.macs for row in table.rows] == [sub_block] * 4
    gates = torch.tensor([[0.0, 0, 0, 1], [1, 1, 0, 0]])
    assert table.flops(gates).tolist() == [8192 + sub_block, 4096 + 2 * sub_block]
    assert conversion_of(model).table == table


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("split", ["matched", "exact"])
def test_what_is_counted_is_what_runs(kind, split):
    model, table = dynamize(seasoned(NETS[kind]()), 2, split=split, input_size=IMAGE)
    set_execution(model, "skip")
    for batch, rate in ((1, 0.5), (4, 0.0), (4, 0.3), (5, 0.7), (3, 1.0)):
        gates = random_gates(batch, len(table.rows), rate, seed=batch)
        if kind == "inverted":  # the block without a shortcut keeps one at least
            gates[:, 2] = 1
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), force_gates(model, gates), counter:
            model(images(batch))
        # PyTorch's counter takes a multiplication and an addition for two.
        assert table.network_flops(gates).sum().item() == counter.get_total_flops() / 2


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("split", ["matched", "exact"])
@pytest.mark.parametrize("N", slow_unless((4).__eq__, [1, 2, 4]))
def test_parameters_add_up(kind, split, N):
    source = NETS[kind]()
    model, table = dynamize(source, N, split=split, input_size=IMAGE)
    controllers = sum(p.numel() for p in gate_parameters(model))
    assert table.params == sum(p.numel() for p in model.parameters()) - controllers
    assert table.fixed_rows[-1] == FixedRow("controllers", table.controllers, controllers)
    assert table.dense_params == sum(p.numel() for p in source.parameters())


def test_counting_leaves_no_trace():
    model, _ = dynamize(basic_net(), 2, input_size=IMAGE)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())


# --- against fvcore ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "split", "size"),
    slow_unless(
        lambda arch, split, size: arch == "resnet18",
        [
            ("resnet18", "matched", (3, 224, 224)),
            ("resnet50", "matched", (3, 224, 224)),
            ("resnet50", "exact", (3, 224, 224)),
            ("mobilenet_v2", "matched", (3, 224, 224)),
            ("resnext50_32x4d", "matched", (3, 224, 224)),
            ("resnet50", "exact", (3, 96, 160)),
        ],
    ),
)
def test_counts_are_fvcores(arch, split, size):
    source, expected = getattr(torchvision.models, arch)(), source_macs(arch, size)
    model, table = dynamize(source, 2, split=split, input_size=size, inplace=True)
    assert table.dense_total == expected
    # All gates are on at the start. (Forced ones would leave the controllers without any effect
    # on the output, and tracing drops what has none.)
    assert fvcore_macs(model, size) == table.total
    assert table.network_flops(torch.ones(1, len(table.rows))).item() == table.total
    assert table.fixed + table.gated == table.total
    if (arch, size[1]) == ("resnet50", 224):
        assert len(table.blocks) == 16
        assert table.controllers < 0.0003 * table.dense_total
        assert expected == pytest.approx(4.089e9, rel=1e-3)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(6, 4, 3, stride=2),
        nn.Conv2d(6, 9, 3, groups=3, dilation=2, padding=1),
        nn.Conv3d(6, 4, (1, 2, 3)),
        nn.ConvTranspose1d(6, 4, 3, stride=2),
        nn.ConvTranspose2d(6, 9, 3, stride=3, groups=3, output_padding=1),
        nn.ConvTranspose3d(6, 4, 2, padding=1),
    ],
    ids=str,
)
def test_every_convolution_counts_as_fvcores(conv):
    size = (6, 7, 8, 9)[: conv.weight.dim() - 1]
    assert measure(conv, size).macs[""] == fvcore_macs(conv, size) > 0


@pytest.mark.slow
def test_recomputed_for_another_size_equals_a_conversion_for_that_size():
    source = torchvision.models.resnet18().eval()
    model, table = dynamize(source, split="exact", input_size=(3, 64, 64))
    again = table.recomputed(model, (3, 96, 64))
    assert again == dynamize(source, split="exact", input_size=(3, 96, 64)).table
    assert again.dense_total > table.dense_total
    with pytest.raises(ArgumentError, match="does not run"):
        table.recomputed(model, (1, 64, 64))


# --- what runs as one operation ---------------------------------------------------------------


class Tokens(nn.Module):
    """A layer that reads (B, 16, 24) tokens."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(2).transpose(1, 2).repeat(1, 1, 8))


class Attention(nn.Module):
    """Keys and values that are fewer, and of another width, than the queries."""

    def forward(self, x):
        heads = x.unflatten(2, (4, 6)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads[:, :, :9], heads[:, :, :9, :5])


class SelfAttention(nn.MultiheadAttention):
    """PyTorch's own, of tokens alone."""

    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


FUSED = {
    "attention": (Attention(), 4 * 16 * 9 * (6 + 5)),
    "layer": (SelfAttention(24, 4, batch_first=True), 16 * (4 * 24 * 24 + 2 * 16 * 24)),
    "lstm": (
        nn.LSTM(24, 10, num_layers=2, bidirectional=True, batch_first=True),
        16 * 2 * 4 * 10 * ((24 + 10) + (20 + 10)),
    ),
    "gru": (nn.GRU(24, 10, batch_first=True), 16 * 3 * 10 * (24 + 10)),
    "encoder": (
        nn.TransformerEncoderLayer(24, 4, 48, batch_first=True),
        16 * (4 * 24 * 24 + 2 * 16 * 24 + 2 * 24 * 48),
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_what_a_processor_fuses_counts_as_its_products(name, monkeypatch):
    layer, expected = FUSED[name]
    network = Tokens(layer).eval()
    assert measure(network, (3, 4, 4)).macs[""] == expected
    monkeypatch.setattr(count, "running_copy", lambda model, *_: running_copy(model))
    assert measure(network, (3, 4, 4)).macs[""] == expected
