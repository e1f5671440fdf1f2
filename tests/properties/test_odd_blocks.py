"""Blocks that were once converted wrongly, or not found."""

import pytest
import timm
import torch
import torch.nn.functional as F
from block_nets import (
    HIDDEN,
    OUT,
    MapMlp,
    around,
    basic,
    build,
    hidden,
    net,
    residual,
    size_of,
    squeezed_context,
)
from family_nets import Family
from family_nets import build as build_family
from helpers import converts, fvcore_macs
from nets import Residual, Written, conv_norm, images, off_by, randomised
from timm.layers import SelectiveKernel, SplitAttn
from timm.layers.cbam import CbamModule
from torch import nn

from dmnn_convert import dynamize, find_blocks, force_gates


def gain(*shape):
    return nn.Parameter(torch.rand(shape) + 1)


def test_a_fork_that_is_computed_from_what_sizes_are_read_of():
    """The sizes that the branch reads are of what comes before its fork."""

    def written(m, x):
        y = m.act(x)
        return y + m.q(F.interpolate(m.p(y).relu(), size=x.shape[2:]))

    p, q = conv_norm(OUT, HIDDEN, stride=2), conv_norm(HIDDEN, OUT)
    source = net(Written(written, act=nn.Tanh(), p=p, q=q), basic())
    assert converts(source) in (1, 2)


@pytest.mark.slow
def test_swiftformer():
    """Its shortcut lies beside the branch, inside what both are computed from."""
    source = build_family(Family("swiftformer_xs", "", size=(3, 224, 224)))
    x = images(source, (3, 224, 224), 2)
    model, _ = dynamize(source, 2, split="exact")
    with torch.no_grad(), force_gates(model, True):
        assert off_by(model(x), source(x)) <= 1e-4


def test_tokens_whose_sizes_are_read_of_the_map():
    """The same in a transformer's MLP."""

    def written(m, x):
        b, _, h, w = x.shape
        t = x.flatten(2).transpose(1, 2)
        inner = m.fc1(t).transpose(1, 2).view(b, HIDDEN, h, w)
        return t + m.fc2(F.gelu(m.dw(inner).flatten(2).transpose(1, 2)))

    dw = nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1, groups=HIDDEN)
    block = Written(written, fc1=nn.Linear(OUT, HIDDEN), fc2=nn.Linear(HIDDEN, OUT), dw=dw)
    assert converts(net(basic(), block)) in (1, 2)


def test_a_block_around_a_broadcast_sum_converts():
    inner = around(squeezed_context, mask=nn.Conv2d(OUT, 1, 1))
    body = nn.Sequential(*conv_norm(OUT, HIDDEN), nn.ReLU(), *conv_norm(HIDDEN, OUT), inner)
    source = net(Residual(body))
    assert converts(source) == 1


def test_selective_kernels_and_split_attention_are_found():
    """Their sums over branches are no pools."""
    for attention in (SelectiveKernel(HIDDEN, HIDDEN), SplitAttn(HIDDEN, HIDDEN)):
        assert converts(net(residual(attention))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnest14d", "skresnet18"])
def test_selective_kernels_and_split_attention_are_found_in_whole_networks(name):
    assert any(b.reason is None for b in find_blocks(timm.create_model(name)))


def test_cbam_is_found():
    """Its MLP is called twice inside one branch: for the mean and for the largest value."""
    assert converts(net(residual(CbamModule(HIDDEN, rd_channels=4)))) == 1


def test_what_a_trunk_computes_by_functions_counts_in_the_source_too():
    source = build("blur_pool")
    _, table = dynamize(source, 2, split="exact", input_size=size_of("blur_pool"))
    assert table.dense_total == fvcore_macs(source, size_of("blur_pool"))


def test_a_scale_of_rows_with_a_batch_dimension():
    """(1, C, 1) may scale rows as well as channels."""
    gamma = nn.Parameter(torch.randn(1, HIDDEN, 1))
    source = net(hidden(lambda m, h: h * m.g, g=gamma))
    model, _ = dynamize(source, 2, split="exact", input_size=(3, HIDDEN, 8))
    x = images(source, (3, HIDDEN, 8), 2)
    with torch.no_grad(), force_gates(model, True):
        assert off_by(model(x), source(x)) <= 1e-5


def test_three_consumers_make_one_block():
    """Not a block with a convolution for a shortcut in a larger one."""

    def path(width, kernel):
        conv = nn.Conv2d(width, OUT, 1, bias=False)
        return nn.Sequential(*conv_norm(OUT, width, kernel), nn.ReLU(), conv)

    paths = {"a": path(6, 1), "b": path(9, 3), "c": path(12, 5)}
    block = Written(lambda m, x: x + m.n(m.a(x) + m.b(x) + m.c(x)), n=nn.BatchNorm2d(OUT), **paths)
    (found,) = (b for b in find_blocks(net(block)) if b.reason is None)
    assert found.shortcut == "identity"


def test_a_hidden_map_of_tokens_is_split():
    """The channels' size is read of the tokens, before they become a map."""
    source = net(Written(lambda m, x: x.flatten(2).transpose(1, 2)), Residual(MapMlp(8)))
    (found,) = (b for b in find_blocks(source) if b.reason is None)
    assert found.exact_split == "hidden-channel"


def test_resmlp_is_found():
    """Its affine norms (addcmul) tell how many channels there are."""
    model = timm.create_model("resmlp_12_224", img_size=64)
    assert any(b.reason is None for b in find_blocks(model))


class Sum(nn.Module):
    """A sum that is a module of its own, as in quantisable networks."""

    def forward(self, a, b):
        return a + b


def test_a_sum_inside_a_module_of_its_own():
    p, q = conv_norm(OUT, HIDDEN), conv_norm(HIDDEN, OUT)
    block = Written(lambda m, x: m.add(x, m.q(m.p(x).relu())), p=p, q=q, add=Sum())
    assert converts(net(block)) == 1


def test_a_part_that_nothing_reads_goes_with_the_branch():
    def written(m, x):
        parts = m.p(x).relu().split(HIDDEN // 2, 1)
        first = parts[0]  # nothing reads this
        first = m.mid(parts[0])
        return x + m.q(torch.cat([first, parts[1]], 1))

    mid = nn.Conv2d(HIDDEN // 2, HIDDEN // 2, 3, padding=1)
    block = Written(written, p=conv_norm(OUT, HIDDEN), q=conv_norm(HIDDEN, OUT), mid=mid)
    assert converts(net(block)) == 1


def test_a_projection_is_no_branch_beside_a_deeper_path():
    """Of two paths only the shallower one can be taken out; gating that is not what anyone asks."""

    def written(m, x):
        h = m.p(x).relu()
        return m.short(x) + m.q(h) + h.mean()

    p, q = conv_norm(OUT, HIDDEN), conv_norm(HIDDEN, OUT)
    block = Written(written, p=p, q=q, short=nn.Conv2d(OUT, OUT, 1))
    found = find_blocks(net(block, basic()))
    assert [b.reason is None for b in found].count(True) == 1
    assert any("is also read elsewhere" in str(b.reason) for b in found)


def test_the_stride_is_by_how_much_the_image_shrinks():
    """Parallel layers with a stride shrink it once."""
    source = timm.create_model("dla60_res2next")
    assert {b.stride for b in find_blocks(source)} == {1, 2}


def test_a_scale_of_depth_is_none_of_channels():
    """(H, 1, 1) beside (B, C, H, W) is a channel each; beside (B, C, D, H, W), a depth each."""
    p, q = nn.Conv3d(OUT, HIDDEN, 3, padding=1), nn.Conv3d(HIDDEN, OUT, 3, padding=1)
    scale = gain(HIDDEN, 1, 1)
    block = Written(lambda m, x: x + m.q(m.p(x).relu() * m.g), p=p, q=q, g=scale)
    source, x = randomised(nn.Sequential(block)), torch.randn(2, OUT, HIDDEN, 4, 4)
    model, _ = dynamize(source, 2, split="exact", input_size=tuple(x.shape[1:]))
    with torch.no_grad(), force_gates(model, True):
        assert off_by(model(x), source(x)) <= 1e-4


def test_a_parameter_that_two_values_would_cut_differently():
    """Of a concatenation a sub-block holds some of each part; of one convolution, one run."""

    def written(m, x):
        both = torch.cat([m.p(x).relu(), m.r(x).relu()], 1) * m.g
        return x + m.q(torch.cat([both, m.b(x).relu() * m.g], 1))

    p, r = nn.Conv2d(OUT, HIDDEN, 1), nn.Conv2d(OUT, HIDDEN, 1)
    b, q = nn.Conv2d(OUT, 2 * HIDDEN, 1), nn.Conv2d(4 * HIDDEN, OUT, 1)
    scale = gain(1, 2 * HIDDEN, 1, 1)
    assert converts(net(Written(written, p=p, r=r, b=b, q=q, g=scale))) == 1


def test_a_parameter_that_scales_the_hidden_channels_and_the_output():
    p, q = nn.Conv2d(OUT, OUT, 1), nn.Conv2d(OUT, OUT, 1)
    scale, norm = gain(1, OUT, 1, 1), nn.BatchNorm2d(OUT)
    block = Written(lambda m, x: x + m.n(m.q(m.p(x).relu() * m.g) * m.g), p=p, q=q, g=scale, n=norm)
    assert converts(net(block)) == 1


def test_a_statement_that_overwrites_what_is_read_next():
    """NFNets scale their branch so: y.mul_(gain), and then they read y."""

    def written(m, x):
        y = m.q(m.p(x).relu())
        y.mul_(m.g)
        return x + y * 0.5

    block = Written(written, p=conv_norm(OUT, HIDDEN), q=conv_norm(HIDDEN, OUT), g=gain(1))
    assert converts(net(block)) == 1


def test_a_norm_whose_weight_is_cast_first():
    def written(m, x):
        y = F.rms_norm(x.float(), (OUT,), m.g.float()).to(x.dtype)
        return x + m.q(F.silu(m.p(y)))

    block = Written(written, p=nn.Linear(OUT, HIDDEN), q=nn.Linear(HIDDEN, OUT), g=gain(OUT))
    tokens = Written(lambda m, x: x.flatten(2).transpose(1, 2))
    assert converts(net(tokens, block)) == 1
