"""Every block type and attention, on nets small enough that a wrong slice shows."""

import copy
import functools
import pickle

import pytest
import torch
from block_nets import (
    TYPES,
    batch_norm_bottleneck,
    build,
    group_norm_bottleneck,
    randomised_throughout,
    size_of,
)
from helpers import check_masked_is_skipping, fvcore_macs, patterns, run
from nets import Written, conv_norm, images, off_by
from quick import one_in
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dmnn_convert import dynamize, find_blocks, force_gates, load, record_paths, save, set_execution
from dmnn_convert.nn import SqueezingSubBlock, multi_path_blocks

BATCH = 5
SQUEEZING = [name for name, kind in TYPES.items() if kind.squeezes]


def convert(name, N, split="exact"):
    """Return source, converted model and table."""
    source = build(name)
    return source, *dynamize(source, N, split=split, input_size=size_of(name))


@pytest.fixture(scope="module", params=one_in(3, TYPES))
def name(request):
    """A type; its tests follow each other, so that what is made of it serves all, and then goes."""
    return request.param


@pytest.fixture(scope="module")
def converted(name):
    """Return `convert` for this type; what it returns is kept, and nobody changes it."""
    return functools.cache(functools.partial(convert, name))


@pytest.fixture(scope="module")
def block(name):
    (block,) = (b for b in find_blocks(build(name)) if b.reason is None)
    return block


counts = pytest.mark.parametrize("N", [pytest.param(2, marks=pytest.mark.slow), 3])
splits = pytest.mark.parametrize(
    "split", ["exact", pytest.param("matched", marks=pytest.mark.slow)]
)


# --- every type -------------------------------------------------------------------------------


def test_the_split_is_as_expected(name, block, converted):
    kind = TYPES[name]
    assert block.exact_split in ("hidden-channel", "shared-trunk")
    if kind.exact is not None:
        assert (block.exact_split, block.split) == (kind.exact, kind.matched or kind.exact)
        (made,) = multi_path_blocks(converted(3)[1])
        assert isinstance(made.sub_blocks[0], SqueezingSubBlock) == kind.squeezes


@counts
def test_all_on_is_the_source_and_all_off_is_not(name, block, converted, N):
    source, model, _ = converted(N)
    x = images(source, size_of(name), BATCH)
    with torch.no_grad():
        expected = source(x)
    for execution in ("skip", "masked"):
        assert off_by(run(model, x, True, execution), expected) <= 1e-5
    if block.shortcut != "none":
        assert off_by(run(model, x, False), expected) > 1e-3


@splits
@counts
def test_masked_is_skipping(name, converted, N, split):
    check_masked_is_skipping(converted(N, split)[1], size_of(name), N)


def test_each_image_alone_is_what_it_is_in_a_batch(name, converted):
    source, model, _ = converted(3)
    x = images(source, size_of(name), BATCH)
    gates = patterns(BATCH, 3)[0]
    together = run(model, x, gates)
    alone = [run(model, x[i : i + 1], gates[i : i + 1]) for i in range(BATCH)]
    assert off_by(torch.cat(alone), together) <= 1e-5


@counts
@splits
def test_every_parameter_of_a_sub_block_gets_a_gradient(name, converted, N, split):
    model = copy.deepcopy(converted(N, split)[1]).train()
    with force_gates(model, True):
        model(images(model, size_of(name), BATCH)).square().mean().backward()
    (block,) = multi_path_blocks(model)
    parts = [*block.sub_blocks, *(p for p in (block.trunk, block.squeeze, block.post) if p)]
    missing = [n for part in parts for n, p in part.named_parameters() if p.grad is None]
    assert not missing
    for sub_block in block.sub_blocks:
        assert any(p.grad.abs().max() > 0 for p in sub_block.parameters())


@counts
def test_there_is_one_gate_for_each_image_and_sub_block(name, converted, N):
    _, model, _ = converted(N)
    with torch.no_grad(), record_paths(model) as paths:
        model(images(model, size_of(name), BATCH))
    assert paths.gates.shape == (BATCH, N)


def test_counts_are_fvcores(name, converted):
    source, model, table = converted(3)
    assert table.dense_total == fvcore_macs(source, size_of(name))
    own = copy.deepcopy(model)
    assert table.network_flops(torch.ones(1, 3)).item() == fvcore_macs(own, size_of(name))


@splits
def test_what_is_counted_is_what_runs(name, block, converted, split):
    _, model, table = converted(3, split)
    gates = patterns(BATCH, 3)[0]
    if block.shortcut == "none":
        gates[gates.sum(1) == 0, 1] = 1  # one stays on, whichever
    counter = FlopCounterMode(display=False)
    with counter:
        run(model, images(model, size_of(name), BATCH), gates)
    # PyTorch's counter takes a multiplication and an addition for two.
    assert table.network_flops(gates).sum().item() == counter.get_total_flops() / 2


@counts
def test_parameters_add_up(converted, N):
    _, model, table = converted(N)
    parts = [*table.rows, *table.trunks, *table.fixed_rows]
    assert sum(p.params for p in parts) == sum(p.numel() for p in model.parameters())


def test_group_norms_save_as_much_as_batch_norms():
    left = []
    for block in (group_norm_bottleneck(), batch_norm_bottleneck()):
        source = randomised_throughout(nn.Sequential(conv_norm(3, 10), block))
        table = dynamize(source, 2, split="exact", input_size=(3, 8, 8)).table
        left.append(table.network_flops(torch.tensor([[1.0, 0.0]])).item() / table.dense_total)
    assert left[0] == left[1] < 0.8


# --- copies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["se_mean", "grn_channels_last", "swiglu", "post_norm_of_tokens"])
def test_a_saved_model_comes_back(name, tmp_path):
    _, model, table = convert(name, 3)
    save(model, tmp_path / "saved")
    loaded, loaded_table = load(tmp_path / "saved", build(name, seed=1))
    x, gates = images(model, size_of(name), BATCH), patterns(BATCH, 3)[0]
    assert loaded_table == table
    assert torch.equal(run(loaded, x, gates), run(model, x, gates))


@pytest.mark.parametrize("name", SQUEEZING)
def test_a_deep_copy_is_whole_and_independent(name):
    _, model, _ = convert(name, 2)
    x, gates = images(model, size_of(name), BATCH), patterns(BATCH, 2)[0]
    expected = run(model, x, gates)
    again = copy.deepcopy(model)
    assert torch.equal(run(again, x, gates), expected)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    assert torch.equal(run(model, x, gates), expected)


@pytest.mark.parametrize("name", ["grn", "se_of_importable_classes"])
def test_a_pickled_model_comes_back(name):
    source = randomised_throughout(nn.Sequential(conv_norm(3, 10), PICKLED[name]()))
    model, _ = dynamize(source, 2, split="exact", input_size=(3, 8, 8))
    x, gates = images(model, (3, 8, 8), BATCH), patterns(BATCH, 2)[0]
    (block,) = multi_path_blocks(model)
    assert isinstance(block.sub_blocks[0], SqueezingSubBlock)
    assert torch.equal(run(pickle.loads(pickle.dumps(model)), x, gates), run(model, x, gates))


class Excited(nn.Module):
    """A residual block with squeeze-excite that pickle can find."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.p, self.q, self.attention = conv_norm(10, 14), conv_norm(14, 10), attention

    def forward(self, x):
        return x + self.q(self.attention(self.p(x).relu()))


def se_of_importable_classes():
    from timm.layers import SEModule

    return Excited(SEModule(14, rd_channels=4))


def grn():
    from timm.layers.grn import GlobalResponseNorm

    return Excited(GlobalResponseNorm(14, channels_last=False))


PICKLED = {"grn": grn, "se_of_importable_classes": se_of_importable_classes}


@pytest.mark.slow
def test_squeeze_excite_compiles_whole():
    source, model, _ = convert("se_mean", 2)
    set_execution(model, "masked")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = images(source, size_of("se_mean"), BATCH)
    with torch.no_grad():
        assert off_by(compiled(x), source(x)) <= 1e-5


# --- images that no sub-block runs for --------------------------------------------------------

ENDS = ("post_norm", "norm_act_output", "se_output", "group_norm_output", "layer_scale_output")


@pytest.mark.parametrize("execution", ["skip", "masked"])
@pytest.mark.parametrize("name", ENDS)
def test_a_branch_that_is_off_adds_nothing(name, execution):
    source, model, _ = convert(name, 3)
    x = images(source, size_of(name), BATCH)
    gates = patterns(BATCH, 3)[0]
    off = gates.sum(1) == 0
    with torch.no_grad():
        shortcut = source[0](x)
    got = run(model, x, gates, execution)
    assert off.any()
    assert torch.equal(got[off], shortcut[off])
    assert not torch.isclose(got[~off], shortcut[~off]).all((1, 2, 3)).any()


def test_post_norm_of_tokens_that_are_off_adds_nothing():
    source, model, _ = convert("post_norm_of_tokens", 2)
    x = images(source, size_of("post_norm_of_tokens"), 3)
    with torch.no_grad():
        tokens = source[0](x).flatten(2).transpose(1, 2)
        expected = source[1][2](tokens)
    for execution in ("skip", "masked"):
        assert torch.equal(run(model, x, False, execution), expected)


def test_a_gate_that_is_off_still_learns_behind_a_norm():
    model = convert("post_norm", 2)[1].train()
    model(images(model, (3, 8, 8), BATCH)).square().mean().backward()
    (block,) = multi_path_blocks(model)
    assert block.controller.w3.weight.grad.abs().max() > 0


# --- squeeze-excite by hand -------------------------------------------------------------------


def tiny() -> nn.Module:
    """x + Q (h · sigmoid(W2 relu(W1 mean(h) + b1) + b2)), h = norm(P x): four hidden channels."""
    return Written(
        lambda m, x: (
            x
            + m.q(
                (h := m.norm(m.p(x)))
                * torch.sigmoid(m.up(torch.relu(m.down(h.mean((2, 3), keepdim=True)))))
            )
        ),
        p=nn.Conv2d(2, 4, 1, bias=False),
        norm=nn.BatchNorm2d(4),
        down=nn.Conv2d(4, 3, 1),
        up=nn.Conv2d(3, 4, 1),
        q=nn.Conv2d(4, 2, 1),
    )


def by_hand(net, x, channels, squeezed, gain, q_bias):
    """Return the block's output from some of the hidden channels and a squeeze that is given."""
    h = net.norm(net.p(x))[:, channels]
    scale = torch.sigmoid(net.up.weight[channels, :, 0, 0] @ squeezed + net.up.bias[channels])
    mixed = torch.einsum("oc,bchw->bohw", net.q.weight[:, channels, 0, 0], h * scale[:, None, None])
    return x + gain * mixed + q_bias[:, None, None]


def test_exact_squeeze_excite_with_one_sub_block_off_by_hand():
    net = randomised_throughout(tiny())
    model, _ = dynamize(net, 2, split="exact", input_size=(2, 3, 3))
    x = images(net, (2, 3, 3), 1)
    for first, channels in ((1.0, [0, 1]), (0.0, [2, 3])):
        with torch.no_grad():
            mean = net.norm(net.p(x)).mean((2, 3))[0, channels]
            # The layer's bias is shared out too, and half of it is off.
            sums = net.down.weight[:, channels, 0, 0] @ mean + net.down.bias / 2
            expected = by_hand(net, x, channels, sums.relu(), 1, net.q.bias / 2)
        got = run(model, x, torch.tensor([[first, 1 - first]]))
        assert off_by(got, expected) <= 1e-6


def test_matched_squeeze_excite_squeezes_alone_by_hand():
    net = randomised_throughout(tiny())
    model, _ = dynamize(net, 2, split="matched", input_size=(2, 3, 3))
    x = images(net, (2, 3, 3), 1)
    total = x
    for first, channels, others in ((1.0, [0, 1], [2, 3]), (0.0, [2, 3], [0, 1])):
        with torch.no_grad():
            mean = net.norm(net.p(x)).mean((2, 3))[0, channels]
            weight = net.down.weight[:, :, 0, 0]
            # On average a norm gives its bias: that is what the missing channels would add.
            missing = weight[:, others] @ net.norm.bias[others]
            alone = weight[:, channels] @ mean + net.down.bias + missing
            expected = by_hand(net, x, channels, alone.relu(), 1, net.q.bias / 2)
        got = run(model, x, torch.tensor([[first, 1 - first]]))
        assert off_by(got, expected) <= 1e-5
        total = total + got - x
    assert off_by(run(model, x), total) <= 1e-5


def test_sub_blocks_that_squeeze_alone_do_not_wait_for_each_other():
    _, model, _ = convert("se_mean", 2, "matched")
    (block,) = multi_path_blocks(model)
    assert block.squeeze is None
    assert not any(isinstance(s, SqueezingSubBlock) for s in block.sub_blocks)
    assert block.approximate
    check_masked_is_skipping(model, size_of("se_mean"), 2)


def test_the_mean_over_channels_counts_all_of_them_by_hand():
    """GRN divides by the mean of the channels' norms; those that do not run count as zero."""
    source, model, _ = convert("grn_channels_last", 2)
    net, x = source[1], images(source, (3, 8, 8), 1)
    with torch.no_grad():
        inner = source[0](x)
        h = torch.nn.functional.gelu(net.p(inner.permute(0, 2, 3, 1)))[..., :7]
        norms = h.norm(dim=(1, 2), keepdim=True)
        scaled = norms / (norms.sum(-1, keepdim=True) / 14 + net.grn.eps)
        h = h + (net.grn.weight[:7] * (h * scaled) + net.grn.bias[:7])
        branch = h @ net.q.weight[:, :7].T + net.q.bias / 2
        expected = inner + branch.permute(0, 3, 1, 2)
    assert off_by(run(model, x, torch.tensor([[1.0, 0.0]])), expected) <= 1e-5
