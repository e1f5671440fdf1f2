"""Channels through single operations: a table for each question that is asked."""

import pytest
import torch
import torch.nn.functional as F
from nets import Written
from timm.layers import BatchNormAct2d, DropPath, StdConv2d
from torch import nn

from dmnn_convert.channels import is_pooled
from dmnn_convert.channels.carry import carried
from dmnn_convert.channels.layout import Layout, channel_count
from dmnn_convert.graph import trace

MAP, TOKENS = Layout(1, 12), Layout(-1, 12)


def last(written, **members):
    """Trace a function and return the trace and the node of its result."""
    traced = trace(Written(written, **members))
    (output,) = (n for n in traced.graph.nodes if n.op == "output")
    return traced, output.args[0]


def of(module):
    return lambda: last(lambda m, x: m.op(x), op=module)


def op(written, **members):
    return lambda: last(written, **members)


def parameter(*shape):
    return nn.Parameter(torch.zeros(shape))


def sizes(m, x):
    return x.view(x.shape[0], x.shape[1], -1)


def squeezed(m, x):
    b, c, _, _ = x.size()
    return m.pool(x).view(b, c)


# --- carried: a node, the layout of its output, and what its inputs then hold -----------------

SAME = {
    "relu": of(nn.ReLU()),
    "relu_function": op(lambda m, x: F.relu(x)),
    "relu_method": op(lambda m, x: x.relu()),
    "sigmoid_in_place": op(lambda m, x: x.sigmoid_()),
    "dropout": of(nn.Dropout()),
    "drop_path": of(DropPath(0.5)),
    "batch_norm": of(nn.BatchNorm2d(12)),
    "batch_norm_act": of(BatchNormAct2d(12)),
    "max_pool": of(nn.MaxPool2d(2)),
    "avg_pool_function": op(lambda m, x: F.avg_pool2d(x, 2)),
    "adaptive_pool": of(nn.AdaptiveAvgPool2d(1)),
    "padding": of(nn.ZeroPad2d(1)),
    "pad_function": op(lambda m, x: F.pad(x, (1, 1))),
    "upsample": of(nn.Upsample(scale_factor=2)),
    "prelu": of(nn.PReLU(12)),
    "prelu_of_one": of(nn.PReLU()),
    "depthwise": of(nn.Conv2d(12, 12, 3, groups=12)),
    "grouped": of(nn.Conv2d(12, 12, 3, groups=4)),
    "group_norm": of(nn.GroupNorm(4, 12)),
    "mean_over_positions": op(lambda m, x: x.mean((2, 3), keepdim=True)),
    "mean_without_them": op(lambda m, x: x.mean((2, 3))),
    "sum_over_rows": op(lambda m, x: x.sum(3, keepdim=True)),
    "times_number": op(lambda m, x: x * 0.5),
    "times_scale": op(lambda m, x: x * m.g, g=parameter(12, 1, 1)),
    "times_scale_of_a_batch": op(lambda m, x: x * m.g, g=parameter(1, 12, 1, 1)),
    "times_one_scale": op(lambda m, x: x * m.g, g=parameter(1)),
    "times_map_of_one_channel": op(lambda m, x: x * m.g(x), g=nn.Conv2d(12, 1, 1)),
    "flatten_positions": op(lambda m, x: x.flatten(2)),
    "flatten_pooled": op(lambda m, x: F.adaptive_avg_pool2d(x, 1).flatten(1)),
    "view_of_sizes": op(sizes),
    "view_pooled": op(squeezed, pool=nn.AdaptiveAvgPool2d(1)),
    "group_norm_function": op(
        lambda m, x: F.group_norm(x, 4, m.w, m.b), w=parameter(12), b=parameter(12)
    ),
    "instance_norm": of(nn.InstanceNorm2d(12)),
    "clamp_in_place": op(lambda m, x: x.clamp_(0, 1)),
    "maximum_of_rows": op(lambda m, x: x.max(3, keepdim=True)[0]),
    "maximum_of_rows_by_name": op(lambda m, x: torch.max(x, dim=3, keepdim=True).values),
    "vector_norm": op(lambda m, x: torch.linalg.vector_norm(x, 2, (2, 3), True)),
    "variance_of_positions": op(lambda m, x: x.var((2, 3), False, True)),
    "upsampling": of(nn.UpsamplingNearest2d(scale_factor=2)),
    "getitem_of_positions": op(lambda m, x: x[:, :, None, None]),
}

MIXING = {
    "dense": of(nn.Conv2d(12, 12, 1)),
    "linear": of(nn.Linear(12, 12)),
    "standardised": of(StdConv2d(12, 12, 1)),
    "layer_norm": of(nn.LayerNorm(12)),
    "group_norm_of_one": of(nn.GroupNorm(1, 12)),
    "group_norm_of_unknown_channels": op(lambda m, x: F.group_norm(x, 4)),
    "glu_of_positions": of(nn.GLU(-1)),
    "maximum_of_channels": op(lambda m, x: x.max(1, keepdim=True)),
    "softmax": op(lambda m, x: x.softmax(1)),
    "mean_over_channels": op(lambda m, x: x.mean(1, keepdim=True)),
    "scale_of_columns": op(lambda m, x: x * m.g, g=parameter(12)),
    "scale_of_rows": op(lambda m, x: x * m.g, g=parameter(12, 1)),
    "map_of_parameters": op(lambda m, x: x * m.g, g=parameter(1, 12, 4, 4)),
    "channel_shuffle_that_is_uneven": of(nn.ChannelShuffle(5)),
    "roll": op(lambda m, x: x.roll(1, 1)),
    "slice": op(lambda m, x: x[:, 2:]),
    "reversed": op(lambda m, x: x.flip(1)),
    "view_of_numbers": op(lambda m, x: x.view(2, 12, 16)),
    "padded_channels": op(lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 1))),
    "unknown": op(lambda m, x: torch.frac(x)),
    "cumulative": op(lambda m, x: x.cumsum(1)),
}


@pytest.mark.parametrize("name", SAME)
def test_what_keeps_channels_apart_carries_them(name):
    traced, node = SAME[name]()
    carry = carried(traced, node, MAP)
    assert carry is not None
    assert all((lay.dim, lay.count, lay.segments) == (1, 12, 1) for lay in carry.inputs.values())


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_channels_does_not(name):
    traced, node = MIXING[name]()
    assert carried(traced, node, MAP) is None


MOVING = {
    "to_tokens": (op(lambda m, x: x.transpose(1, 2)), TOKENS, 1),
    "from_tokens": (op(lambda m, x: x.transpose(1, 2)), MAP, -1),
    "to_last": (op(lambda m, x: x.permute(0, 2, 3, 1)), TOKENS, 1),
    "to_front": (op(lambda m, x: x.permute(0, 3, 1, 2)), MAP, -1),
    "permute_by_tuple": (op(lambda m, x: x.permute((0, 3, 1, 2))), MAP, -1),
    "signal_to_last": (op(lambda m, x: x.permute(0, 2, 1)), TOKENS, 1),
}


@pytest.mark.parametrize("name", MOVING)
def test_what_moves_channels_says_where_they_came_from(name):
    make, layout, dim = MOVING[name]
    traced, node = make()
    (before,) = carried(traced, node, layout).inputs.values()
    assert before == Layout(dim, 12)


@pytest.mark.parametrize("layout", [MAP, TOKENS])
def test_a_gated_linear_unit_reads_the_same_channels_of_both_halves(layout):
    traced, node = of(nn.GLU(layout.dim))()
    (before,) = carried(traced, node, layout).inputs.values()
    assert before == Layout(layout.dim, 24, segments=2)


@pytest.mark.parametrize(("groups", "units"), [(2, 2), (4, 4), (12, 12)])
def test_groups_limit_how_many_parts_there_are(groups, units):
    traced, node = of(nn.Conv2d(24, 12, 3, groups=groups))()
    carry = carried(traced, node, MAP)
    (before,) = carry.inputs.values()
    assert (before.count, carry.units) == (24, units)


def test_a_grouped_convolution_of_other_channels_carries_nothing():
    traced, node = of(nn.Conv2d(24, 24, 3, groups=4))()
    assert carried(traced, node, MAP) is None


def test_pieces_are_segments_of_what_they_come_from():
    traced, node = last(lambda m, x: x.chunk(3, 1)[1])
    (chunk, layout), *_ = carried(traced, node, Layout(1, 4)).inputs.items()
    (before,) = carried(traced, chunk, layout).inputs.values()
    assert before == Layout(1, 12, 3)


def test_a_shuffle_takes_the_channels_of_each_group_in_turn():
    traced, node = of(nn.ChannelShuffle(3))()
    (before,) = carried(traced, node, Layout(1, 12, 2)).inputs.values()
    assert before == Layout(1, 12, 6)


@pytest.mark.parametrize("dim", [2, 0])
def test_pieces_along_other_dimensions_carry_nothing(dim):
    traced, node = last(lambda m, x: x.chunk(3, dim)[1])
    assert carried(traced, node.args[0], Layout(1, 4)) is None


def test_what_is_joined_is_told_apart():
    traced, node = last(
        lambda m, x: torch.cat([m.a(x), m.b(x)], 1), a=nn.Conv2d(4, 5, 1), b=nn.Conv2d(4, 7, 1)
    )
    assert [lay.count for lay in carried(traced, node, MAP).inputs.values()] == [5, 7]


@pytest.mark.parametrize(
    "written",
    [
        lambda m, x: torch.cat([x, m.a(x)], 1),
        lambda m, x: torch.cat([m.a(x), m.a(x)], 2),
        lambda m, x: torch.cat([y := m.a(x), y], 1),
    ],
    ids=["unknown_width", "other_dimension", "one_thing_twice"],
)
def test_what_cannot_be_told_apart_carries_nothing(written):
    traced, node = last(written, a=nn.Conv2d(4, 6, 1))
    assert carried(traced, node, MAP) is None


def test_a_product_of_two_values_is_not_sure_of_either():
    traced, node = last(lambda m, x: x * m.a(x), a=nn.Conv2d(12, 12, 1))
    assert [lay.sure for lay in carried(traced, node, MAP).inputs.values()] == [False, False]


# --- how many channels ------------------------------------------------------------------------

COUNTS = {
    "convolution": (of(nn.Conv2d(3, 12, 1)), 12),
    "linear": (of(nn.Linear(3, 12)), 12),
    "norm": (of(nn.BatchNorm2d(12)), 12),
    "activation": (op(lambda m, x: m.a(x).relu() * 2, a=nn.Conv2d(3, 12, 1)), 12),
    "joined": (
        op(
            lambda m, x: torch.cat([m.a(x), m.b(x)], 1),
            **dict(a=nn.Conv2d(3, 5, 1), b=nn.Conv2d(3, 7, 1)),
        ),
        12,
    ),
    "piece": (op(lambda m, x: m.a(x).chunk(2, 1)[0], a=nn.Conv2d(3, 24, 1)), 12),
    "split": (op(lambda m, x: m.a(x).split(12, 1)[0], a=nn.Conv2d(3, 24, 1)), 12),
    "input": (op(lambda m, x: x.relu()), None),
    "uneven_piece": (op(lambda m, x: m.a(x).chunk(5, 1)[0], a=nn.Conv2d(3, 24, 1)), None),
    "slice": (op(lambda m, x: m.a(x)[:, 3:], a=nn.Conv2d(3, 24, 1)), None),
}


@pytest.mark.parametrize("name", COUNTS)
def test_channels_are_counted_where_that_is_certain(name):
    make, expected = COUNTS[name]
    assert channel_count(*make()) == expected


# --- one value per channel --------------------------------------------------------------------

POOLED = {
    "module": of(nn.AdaptiveAvgPool2d(1)),
    "module_of_tuple": of(nn.AdaptiveMaxPool2d((1, 1))),
    "function": op(lambda m, x: F.adaptive_avg_pool2d(x, 1)),
    "mean": op(lambda m, x: x.mean((2, 3), keepdim=True)),
    "mean_method_of_list": op(lambda m, x: x.mean([-2, -1])),
    "mixed_later": op(lambda m, x: m.a(x.mean((2, 3), keepdim=True)).relu(), a=nn.Conv2d(3, 4, 1)),
    "flattened": op(lambda m, x: m.a(F.adaptive_avg_pool2d(x, 1).flatten(1)), a=nn.Linear(3, 4)),
    "signal": op(lambda m, x: x.mean(2, keepdim=True)),
}
NOT_POOLED = {
    "convolution": of(nn.Conv2d(3, 4, 1)),
    "pool_of_two": of(nn.AdaptiveAvgPool2d(2)),
    "pool_of_a_row": of(nn.AdaptiveAvgPool2d((1, 2))),
    "activation": op(lambda m, x: x.relu()),
    "product": op(lambda m, x: x * x.mean((2, 3), keepdim=True)),
    "input": op(lambda m, x: x[:]),
}


@pytest.mark.parametrize("name", POOLED)
def test_pooled_values_are_known(name):
    assert is_pooled(*POOLED[name]())


@pytest.mark.parametrize("name", NOT_POOLED)
def test_maps_are_not_taken_for_pooled(name):
    assert not is_pooled(*NOT_POOLED[name]())
