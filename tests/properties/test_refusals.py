"""Blocks that no split fits stay dense with a reason; unknown operations are never guessed at."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from block_nets import (
    HIDDEN,
    OUT,
    around,
    basic,
    hidden,
    mlp,
    net,
    squeezed_context,
)
from helpers import SIZE, converts, reasons
from nets import Residual, Written, conv_norm, images, off_by, randomised
from quick import slow_unless
from torch import fx, nn
from torchvision.models.shufflenetv2 import InvertedResidual

from dmnn_convert import dynamize, find_blocks, force_gates
from dmnn_convert.errors import NoBlocksFoundError

FEW = (
    *("sorted", "pieces_swapped", "einsum", "layer_norm", "largest_channel", "spatial_gate"),
    *("wrapped_function", "module_of_a_known_name", "convolution_of_ones_own"),
)


# --- attention of all to all ------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention over positions, written out or by PyTorch's function."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.qkv, self.proj, self.fused = nn.Linear(OUT, 3 * OUT), nn.Linear(OUT, OUT), fused

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.fused:
            return self.proj(F.scaled_dot_product_attention(q, k, v))
        return self.proj((q @ k.transpose(1, 2)).softmax(-1) @ v)


@pytest.mark.parametrize("fused", [True, False])
def test_self_attention_stays_dense_and_the_mlp_beside_it_converts(fused):
    source = net(
        Written(lambda m, x: x.flatten(2).transpose(1, 2)),
        Residual(Attention(fused)),
        Residual(mlp(nn.GELU())),
    )
    assert "self-attention" in reasons(source)
    assert converts(source) == 1


def test_pytorchs_own_attention_stays_dense():
    source = net(
        Written(lambda m, x: x.flatten(2).transpose(1, 2)),
        Written(
            lambda m, x: x + m.a(x, x, x, need_weights=False)[0],
            a=nn.MultiheadAttention(OUT, 2, batch_first=True),
        ),
        Residual(mlp(nn.GELU())),
    )
    assert reasons(source)
    assert converts(source) == 1


# --- rows that are not images -----------------------------------------------------------------


def windows(m, x):
    """Fold windows of four by four into the batch and back."""
    b, c, h, w = x.shape
    x = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    x = m.block(x)
    x = x.view(b, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(b, c, h, w)


def test_an_mlp_over_windows_stays_dense_and_the_rest_converts():
    source = net(basic(), Written(windows, block=Residual(mlp(nn.GELU()))), basic())
    assert len([b for b in find_blocks(source) if b.reason is None]) == 3
    assert converts(source) == 2


def test_an_mlp_over_windows_alone_says_why():
    source = net(Written(windows, block=Residual(mlp(nn.GELU()))))
    with pytest.raises(NoBlocksFoundError, match="4 rows for each image"):
        dynamize(source, 2, input_size=SIZE)


# --- broadcast sums ---------------------------------------------------------------------------


def context(m, x):
    return x + m.up(F.relu(m.down(x.mean((2, 3), keepdim=True))))


def test_one_value_a_channel_added_to_a_map_is_no_block():
    source = net(around(context), basic())
    assert "one value per channel" in reasons(source)
    assert converts(source) == 1


@pytest.mark.parametrize("split", ["exact", "matched"])
def test_a_broadcast_sum_that_only_shapes_show_is_no_block(split):
    source = net(around(squeezed_context, mask=nn.Conv2d(OUT, 1, 1)), basic())
    assert converts(source, split) == 1


def test_a_broadcast_sum_that_only_shapes_show_says_why():
    source = net(around(squeezed_context, mask=nn.Conv2d(OUT, 1, 1)))
    with pytest.raises(NoBlocksFoundError, match="different shapes"):
        dynamize(source, 2, input_size=SIZE)


# --- what nobody knows ------------------------------------------------------------------------


@fx.wrap
def rotated(h):
    """Turn the channels around; nobody but its author knows what it does."""
    return torch.cat([h[:, 1:], h[:, :1]], 1)


class Rotated(nn.Module):
    """The same as a module that looks like a leaf of another library."""

    def forward(self, h):
        return torch.cat([h[:, 1:], h[:, :1]], 1)


class ReLU(nn.Module):
    """Not the activation of that name."""

    def forward(self, h):
        return h.flip(1).relu()


class Mixed(nn.Conv2d):
    """A convolution that turns its weights around first."""

    def forward(self, x):
        return self._conv_forward(x, self.weight.flip(0), self.bias)


UNKNOWN = {
    "sorted": lambda: hidden(lambda m, h: h.sort(1).values),
    "rolled": lambda: hidden(lambda m, h: h.roll(3, 1)),
    "turned": lambda: hidden(lambda m, h: h.flip(1)),
    "summed_up": lambda: hidden(lambda m, h: h.cumsum(1)),
    "sliced": lambda: hidden(lambda m, h: torch.cat([h[:, 5:], h[:, :5]], 1)),
    "by_index": lambda: hidden(lambda m, h: h[:, torch.arange(HIDDEN - 1, -1, -1)]),
    "softmax": lambda: hidden(lambda m, h: h.softmax(1) * 10),
    "shuffled": lambda: hidden(lambda m, h: m.s(h), s=nn.ChannelShuffle(2)),
    "pieces_swapped": lambda: hidden(lambda m, h: torch.cat([*h.chunk(2, 1)][::-1], 1)),
    "einsum": lambda: hidden(
        lambda m, h: torch.einsum("bchw,cd->bdhw", h, m.w),
        w=nn.Parameter(torch.randn(HIDDEN, HIDDEN)),
    ),
    "matrix": lambda: hidden(
        lambda m, h: (h.transpose(1, 3) @ m.w).transpose(1, 3),
        w=nn.Parameter(torch.randn(HIDDEN, HIDDEN)),
    ),
    "layer_norm": lambda: hidden(lambda m, h: F.layer_norm(h, h.shape[1:])),
    "instance_norm": lambda: hidden(lambda m, h: m.n(h), n=nn.InstanceNorm2d(HIDDEN)),
    "response_norm": lambda: hidden(lambda m, h: m.n(h), n=nn.LocalResponseNorm(3)),
    "normalised": lambda: hidden(lambda m, h: F.normalize(h)),
    "centred": lambda: hidden(lambda m, h: h - h.mean(1, keepdim=True)),
    "largest_channel": lambda: hidden(lambda m, h: h / (1 + h.amax(1, keepdim=True))),
    "columns_scaled": lambda: hidden(lambda m, h: h * m.g, g=nn.Parameter(torch.randn(8))),
    "positions_scaled": lambda: hidden(
        lambda m, h: h + m.g, g=nn.Parameter(torch.randn(1, HIDDEN, 8, 8))
    ),
    "spatial_gate": lambda: hidden(
        lambda m, h: h * torch.sigmoid(m.c(h)), c=nn.Conv2d(HIDDEN, 1, 3, padding=1)
    ),
    "wrapped_function": lambda: hidden(lambda m, h: rotated(h)),
    "module_of_ones_own": lambda: hidden(lambda m, h: m.r(h), r=Rotated()),
    "module_of_a_known_name": lambda: hidden(lambda m, h: m.r(h), r=ReLU()),
    "convolution_of_ones_own": lambda: hidden(
        lambda m, h: m.c(h), c=Mixed(HIDDEN, HIDDEN, 3, padding=1, groups=2)
    ),
}


@pytest.mark.parametrize(
    ("name", "split"),
    slow_unless(
        lambda name, split: split == "exact" and name in FEW,
        itertools.product(UNKNOWN, ["exact", "matched"]),
    ),
)
def test_an_operation_that_nobody_knows_is_never_got_wrong(name, split):
    source = net(UNKNOWN[name](), basic())
    assert converts(source, split) in (1, 2)


@pytest.mark.parametrize("name", ["sorted", "wrapped_function", "einsum"])
def test_a_block_that_is_left_dense_names_the_operation(name):
    source = net(UNKNOWN[name](), basic())
    misses = [b for b in find_blocks(source) if b.reason]
    if misses:
        (miss,) = misses
        assert miss.name == "1"
        words = ("sort", "rotated", "getitem", "einsum", "per image", "every image")
        assert any(word in miss.reason for word in words)
    else:
        assert converts(source) == 2


# --- shuffled units ---------------------------------------------------------------------------


def test_a_part_of_a_concatenation_is_no_block():
    unit = InvertedResidual(OUT, OUT, stride=1)
    source = randomised(nn.Sequential(conv_norm(3, OUT), unit, basic())).eval()
    assert re.search(r"only a part of what cat \(\w+.py:\d+\) joins", reasons(source))
    assert converts(source) == 1


def test_halves_that_are_joined_are_no_blocks():
    unit = InvertedResidual(OUT, 2 * OUT, stride=2)
    source = randomised(nn.Sequential(conv_norm(3, OUT), unit)).eval()
    with pytest.raises(NoBlocksFoundError, match=r"part of what cat \(\w+.py:\d+\) joins"):
        dynamize(source, 2, input_size=SIZE)


# --- numbers in the wrong place ---------------------------------------------------------------

SQUARE = {
    "rows_scaled": (
        lambda: hidden(lambda m, h: h * m.g, g=nn.Parameter(torch.randn(HIDDEN, 1))),
        (3, HIDDEN, 8),
    ),
    "columns_scaled": (
        lambda: hidden(lambda m, h: h * m.g, g=nn.Parameter(torch.randn(HIDDEN))),
        (3, 8, HIDDEN),
    ),
    "linear_over_columns": (
        lambda: hidden(lambda m, h: m.l(h), l=nn.Linear(HIDDEN, HIDDEN)),
        (3, 8, HIDDEN),
    ),
    "map_turned": (lambda: hidden(lambda m, h: h.permute(0, 3, 2, 1)), (3, HIDDEN, HIDDEN)),
    "mean_of_rows": (
        lambda: hidden(lambda m, h: h * h.mean(2, keepdim=True)),
        (3, HIDDEN, HIDDEN),
    ),
    "softmax_of_rows": (lambda: hidden(lambda m, h: h.softmax(2) * 9), (3, HIDDEN, HIDDEN)),
}


@pytest.mark.parametrize("name", SQUARE)
def test_positions_are_not_taken_for_channels_where_there_are_as_many(name):
    make, size = SQUARE[name]
    source = net(make())
    model, _ = dynamize(source, 2, split="exact", input_size=size)
    x = images(source, size, 2)
    with torch.no_grad(), force_gates(model, True):
        assert off_by(model(x), source(x)) <= 1e-5
