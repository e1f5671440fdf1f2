"""Blocks are found by structure, everywhere; what is left dense says why; nothing is touched."""

import copy
import random
import re
from collections import Counter

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from idioms import IDIOMS
from nets import (
    NETS,
    Inline,
    Remembering,
    Residual,
    SumBlock,
    WrittenBlock,
    conv_norm,
    inverted,
    unfilled,
)
from quick import one_in, slow_unless
from torch import nn
from torchvision import models

from dmnn_convert import dynamize, find_blocks, force_gates, set_execution

BASIC = ("basic", "hidden-channel", "hidden-channel")
DENSE = ("bottleneck", "matched-width", "shared-trunk")
GROUPED = ("grouped-bottleneck", "hidden-channel", "hidden-channel")
INVERTED = ("inverted-residual", "hidden-channel", "hidden-channel")

# architecture: kind and splits; blocks with an identity, with a projection, without a shortcut;
# name, widths and hidden channels of the first block and of the last
ZOO = {
    "resnet18": (BASIC, 5, 3, 0, "layer1.0 64 64 64 | 64", "layer4.1 512 512 512 | 512"),
    "resnet34": (BASIC, 13, 3, 0, "layer1.0 64 64 64 | 64", "layer4.2 512 512 512 | 512"),
    "resnet50": (DENSE, 12, 4, 0, "layer1.0 64 64 64 256 | 64", "layer4.2 2048 512 512 2048 | 512"),
    "resnet101": (
        *(DENSE, 29, 4, 0),
        *("layer1.0 64 64 64 256 | 64", "layer4.2 2048 512 512 2048 | 512"),
    ),
    "resnet152": (
        *(DENSE, 46, 4, 0),
        *("layer1.0 64 64 64 256 | 64", "layer4.2 2048 512 512 2048 | 512"),
    ),
    "resnext50_32x4d": (
        *(GROUPED, 12, 4, 0),
        *("layer1.0 64 128 128 256 | 128", "layer4.2 2048 1024 1024 2048 | 1024"),
    ),
    "resnext101_32x8d": (
        *(GROUPED, 29, 4, 0),
        *("layer1.0 64 256 256 256 | 256", "layer4.2 2048 2048 2048 2048 | 2048"),
    ),
    "resnext101_64x4d": (
        *(GROUPED, 29, 4, 0),
        *("layer1.0 64 256 256 256 | 256", "layer4.2 2048 2048 2048 2048 | 2048"),
    ),
    "wide_resnet50_2": (
        *(DENSE, 12, 4, 0),
        *("layer1.0 64 128 128 256 | 128", "layer4.2 2048 1024 1024 2048 | 1024"),
    ),
    "wide_resnet101_2": (
        *(DENSE, 29, 4, 0),
        *("layer1.0 64 128 128 256 | 128", "layer4.2 2048 1024 1024 2048 | 1024"),
    ),
    "mobilenet_v2": (
        *(INVERTED, 10, 0, 7),
        *("features.1 32 32 16 | 32", "features.17 160 960 960 320 | 960"),
    ),
    "mobilenet_v2 0.35": (
        *(INVERTED, 10, 0, 7),
        *("features.1 16 16 8 | 16", "features.17 56 336 336 112 | 336"),
    ),
    "mobilenet_v2 0.5": (
        *(INVERTED, 10, 0, 7),
        *("features.1 16 16 8 | 16", "features.17 80 480 480 160 | 480"),
    ),
    "mobilenet_v2 1.4": (
        *(INVERTED, 10, 0, 7),
        *("features.1 48 48 24 | 48", "features.17 224 1344 1344 448 | 1344"),
    ),
    "timm:resnet50": (
        *(DENSE, 12, 4, 0),
        *("layer1.0 64 64 64 256 | 64", "layer4.2 2048 512 512 2048 | 512"),
    ),
    "timm:resnet26d": (
        *(DENSE, 4, 4, 0),
        *("layer1.0 64 64 64 256 | 64", "layer4.1 2048 512 512 2048 | 512"),
    ),
    "timm:mobilenetv2_100": (
        *(INVERTED, 10, 0, 7),
        *("blocks.0 32 32 16 | 32", "blocks.6 160 960 960 320 | 960"),
    ),
}


def build(name):
    arch, _, width = name.removeprefix("timm:").partition(" ")
    if name.startswith("timm:"):
        return timm.create_model(arch)
    options = {"width_mult": float(width)} if width else {}
    return unfilled(lambda: models.get_model(arch, **options))


def summary(block):
    return f"{block.name} {' '.join(map(str, block.widths))} | {block.hidden}"


QUICK = ("resnet18", "resnet50", "mobilenet_v2", "timm:resnet26d", "timm:mobilenetv2_100")


@pytest.mark.parametrize("name", slow_unless(QUICK.__contains__, ZOO))
def test_zoo(name):
    (kind, split, exact), identities, projections, chains, first, last = ZOO[name]
    blocks = find_blocks(build(name))
    expected = Counter(identity=identities, projection=projections, none=chains)
    found = [b for b in blocks if b.reason is None]
    assert found == list(blocks)
    kinds = {kind, "depthwise-separable"} if chains else {kind}  # MobileNetV2's first block
    assert {b.kind for b in found} == kinds
    assert {(b.split, b.exact_split) for b in found} == {(split, exact)}
    assert Counter(b.shortcut for b in found) == +expected
    assert (summary(found[0]), summary(found[-1])) == (first, last)
    assert len({b.name for b in blocks}) == len(blocks)


@pytest.mark.parametrize("name", one_in(2, NETS))
def test_user_networks(name):
    net = NETS[name]
    blocks = find_blocks(net.build())
    assert [(b.kind, b.reason) for b in blocks] == [(kind, None) for kind in net.kinds]
    assert all(b.split and b.exact_split and b.hidden >= net.units for b in blocks)


def test_blocks_in_the_roots_forward_are_named_after_their_layers():
    blocks = find_blocks(Inline())
    assert len({b.name for b in blocks}) == 3
    assert [b.shortcut for b in blocks] == ["identity", "identity", "projection"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "name", one_in(2, ["dropout_inside", "functional", "drop_path", "resnet18"])
)
def test_the_mode_makes_no_difference(name, training):
    model = NETS[name].build() if name in NETS else build(name)
    assert find_blocks(model.train(training)) == find_blocks(model.train(not training))


# --- near misses ------------------------------------------------------------------------------


def read_elsewhere(m, x):
    inner = F.relu(m.a(x))
    return torch.cat([m.b(inner) + x, inner], 1)


def overwritten_fork(m, x):
    out = m.branch(x)
    return out + x.relu_()


def stores(m, x):
    m.last = x
    return m.branch(x) + x


def counts(m, x):
    m.b[1].num_batches_tracked += 1
    return m.branch(x) + x


def mode_dependent(m, x):
    out = m.branch(x)
    return out + x if m.training else F.hardtanh(out) + x


def python_random(m, x):
    return x if random.random() < 0.5 else m.branch(x) + x


def torch_random(m, x):
    return x if torch.rand(()) < 0.5 else m.branch(x) + x


def numpy_random(m, x):
    return x if np.random.random() < 0.5 else m.branch(x) + x


def data_dependent(m, x):
    return m.branch(x) + x if x.sum() > 0 else x


def attention(m, x):
    out = m.branch(x)
    return out * torch.sigmoid(m.a(out).mean((2, 3), keepdim=True)) + x


NEAR_MISSES = {
    "constant": (lambda m, x: m.branch(x) + 0.5, "constant or a parameter"),
    "constant_turned": (lambda m, x: 0.5 + m.branch(x), "constant or a parameter"),
    "parameter": (lambda m, x: m.branch(x) + m.bias, "constant or a parameter"),
    "alpha": (lambda m, x: torch.add(m.branch(x), x, alpha=2), "alpha="),
    "alpha_method": (lambda m, x: m.branch(x).add_(x, alpha=2), "alpha="),
    "read_elsewhere": (read_elsewhere, "read elsewhere"),
    "two_equal_branches": (lambda m, x: m.a(x) + m.b(x), "two branches of equal depth"),
    "overwritten_fork": (overwritten_fork, "in place"),
    "stores_a_value": (stores, "stores|keeps|leaves|attribute|side effect"),
    "counts_calls": (counts, "stores|keeps|leaves|attribute|buffer|side effect"),
    "subtraction": (lambda m, x: x - m.branch(x), "sub"),
    "called_twice": (lambda m, x: m.b(F.relu(m.b(x))) + x, "called 2 times"),
    "mode_dependent": (mode_dependent, "differs between training and evaluation"),
    "python_random": (python_random, "random numbers"),
    "torch_random": (torch_random, "random numbers|cannot be traced"),
    "numpy_random": (numpy_random, "random numbers"),
    "data_dependent": (data_dependent, "cannot be traced"),
    "attention": (attention, "attention|read elsewhere|called 2 times"),
    "unknown_operation": (lambda m, x: m.b(m.a(x).frac()) + x, "frac"),
    "by_image_order": (lambda m, x: m.b(m.a(x).flip(0)) + x, "flip"),
}

# name -> forward; every split keeps the function, though channels are mixed on the way
MIXED = {
    "no_expansion": lambda m, x: m.a(x) + x,
    "over_channels": lambda m, x: m.b(m.a(x).cumsum(1)) + x,
    "bent_at_the_end": lambda m, x: m.branch(x).abs() + x,
    "activated_by_sigmoid": lambda m, x: torch.sigmoid(m.branch(x)) + x,
}


STATELESS = nn.BatchNorm2d(8, track_running_stats=False)
ENDS = {
    "clamped_above_zero": nn.Hardtanh(1.0, 2.0),
    "clamped_below_zero": nn.Hardtanh(-2.0, -1.0),
    "two_norms": nn.BatchNorm2d(8),
    "grouped": nn.Conv2d(8, 8, 3, padding=1, groups=2),
    "sigmoid": nn.Sigmoid(),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_follows_the_last_dense_layer_runs_on_the_gated_sum(name):
    body = nn.Sequential(*conv_norm(8, 8), nn.ReLU(), *conv_norm(8, 8), ENDS[name])
    model = nn.Sequential(conv_norm(3, 8), Residual(body)).eval()
    check_exact(model)


@pytest.mark.parametrize("name", MIXED)
def test_branches_that_mix_channels_are_computed_whole_where_they_do(name):
    check_exact(nn.Sequential(conv_norm(3, 8), WrittenBlock(MIXED[name])).eval())


def check_exact(model):
    """All gates on is the source; all off leaves the shortcut alone, masked or not."""
    images = torch.randn(3, 3, 8, 8)
    (block,) = find_blocks(model)
    assert block.exact_split
    converted, _ = dynamize(model, split="exact", input_size=(3, 8, 8))
    with torch.no_grad():
        for execution in ("skip", "masked"):
            set_execution(converted, execution)
            with force_gates(converted, True):
                torch.testing.assert_close(converted(images), model(images))
            with force_gates(converted, False):
                torch.testing.assert_close(converted(images), model[0](images))


def test_a_branch_that_ends_in_a_norm_by_the_batchs_statistics_says_so():
    body = nn.Sequential(*conv_norm(8, 8), nn.ReLU(), *conv_norm(8, 8), copy.deepcopy(STATELESS))
    (block,) = find_blocks(nn.Sequential(conv_norm(3, 8), Residual(body)))
    assert block.split is None
    assert "statistics" in block.reason


@pytest.mark.parametrize("place", [0, 1])
def test_norms_by_the_batchs_own_statistics_would_see_who_is_skipped(place):
    layers = [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)]
    layers.insert(place, copy.deepcopy(STATELESS))
    (block,) = find_blocks(nn.Sequential(conv_norm(3, 8), Residual(nn.Sequential(*layers))))
    assert block.split is None
    assert "statistics" in block.reason


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_say_why(name):
    forward, reason = NEAR_MISSES[name]
    bias = nn.Parameter(torch.randn(1, 8, 1, 1))
    blocks = find_blocks(nn.Sequential(conv_norm(3, 8), WrittenBlock(forward, bias=bias)))
    assert blocks, "silently skipped"
    assert all(b.split is None and b.exact_split is None for b in blocks)
    assert any(re.search(reason, b.reason) for b in blocks), [str(b) for b in blocks]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv_norm(3, 8), conv_norm(8, 8)

    def forward(self, x, y):
        return self.b(F.relu(self.a(x))) + y


def test_a_sum_of_two_inputs_is_no_block():
    (block,) = find_blocks(TwoInputs())
    assert "two different inputs" in block.reason


def two_sum_blocks():
    return nn.Sequential(conv_norm(3, 8), SumBlock("plus"), SumBlock("plus"))


@pytest.mark.parametrize(
    "register",
    [
        lambda m: m.register_forward_hook(lambda *_: None),
        lambda m: m.register_forward_pre_hook(lambda *_: None),
        lambda m: m.register_full_backward_hook(lambda *_: None),
        lambda m: m.register_full_backward_pre_hook(lambda *_: None),
        lambda m: m.register_state_dict_post_hook(lambda *_: None),
        lambda m: m.register_state_dict_pre_hook(lambda *_: None),
        lambda m: m.register_load_state_dict_pre_hook(lambda *_: None),
        lambda m: m.register_load_state_dict_post_hook(lambda *_: None),
    ],
)
@pytest.mark.parametrize("place", slow_unless("second".__eq__, ["first.0", "second", "second.1"]))
def test_a_hook_on_what_would_be_replaced_keeps_the_block_dense(place, register):
    model = two_sum_blocks()
    register(model[1].get_submodule(place))
    hooked, free = find_blocks(model)
    assert hooked.split is None
    assert "hook" in hooked.reason
    assert place in hooked.reason
    assert free.reason is None


def test_a_hook_on_what_is_kept_does_no_harm():
    model = two_sum_blocks()
    model[1].register_forward_hook(lambda *_: None)
    model[0].register_forward_hook(lambda *_: None)
    assert [b.reason for b in find_blocks(model)] == [None, None]


def test_tied_parameters_keep_the_block_dense():
    model = two_sum_blocks()
    model[1].first[0].weight = model[2].first[0].weight
    assert all("shares a parameter" in b.reason for b in find_blocks(model))


def test_a_tie_of_modules_keeps_the_block_dense():
    model = two_sum_blocks()
    model[1].first = model[2].first
    assert [b for b in find_blocks(model) if b.reason is None] == []


def test_a_block_that_is_called_twice_stays_dense():
    block = SumBlock("plus")
    blocks = find_blocks(nn.Sequential(conv_norm(3, 8), block, nn.ReLU(), block))
    assert blocks
    assert all("called 2 times" in b.reason or "shares" in b.reason for b in blocks)


def test_a_subclass_of_a_convolution_is_not_cut():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            w = self.weight
            return F.conv2d(x, w - w.mean((1, 2, 3), keepdim=True), padding=self.padding)

    model = nn.Sequential(conv_norm(3, 8), Residual(nn.Sequential(*conv_norm(8, 8), nn.ReLU())))
    model[1].body.append(Standardised(8, 8, 3, padding=1))
    check_exact(model.eval())
    (block,) = find_blocks(model)
    assert block.branch.consumer.target == "1.body.0"


@pytest.mark.parametrize(
    ("norm", "split"),
    [
        (nn.GroupNorm(2, 8), "hidden-channel"),
        (nn.GroupNorm(1, 8), "shared-trunk"),
        (nn.LayerNorm([8, 8, 8]), "shared-trunk"),
    ],
)
def test_norms_over_channels_are_split_by_groups_or_not_at_all(norm, split):
    body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), norm, nn.Conv2d(8, 8, 3, padding=1))
    model = nn.Sequential(conv_norm(3, 8), Residual(body))
    check_exact(model.eval())
    assert find_blocks(model)[0].exact_split == split


def test_no_block_of_mobilenet_v3_is_silently_skipped():
    blocks = find_blocks(models.mobilenet_v3_small())
    assert [b.name for b in blocks] == [f"features.{i}" for i in range(1, 12)]
    splits = {b.name: b.split for b in blocks}
    assert splits.pop("features.2") == splits.pop("features.3") == "hidden-channel"
    assert set(splits.values()) == {"own-squeeze"}
    assert {b.exact_split for b in blocks} == {"hidden-channel"}


def test_a_chain_that_does_not_expand_or_narrow_is_none():
    plain = nn.Sequential(conv_norm(3, 8), nn.ReLU(), conv_norm(8, 16, 1), nn.ReLU())
    assert not any(b.split for b in find_blocks(plain))
    (block,) = find_blocks(nn.Sequential(plain, inverted(16, 20, 48, 2)))
    assert (block.shortcut, block.stride) == ("none", 2)


# --- reading only -----------------------------------------------------------------------------


def state_of(model):
    """Everything that one could see of a model and of the world's random numbers."""
    attributes = {
        name: {k: v for k, v in vars(m).items() if k not in ("_modules", "_parameters", "_buffers")}
        for name, m in model.named_modules()
    }
    return {
        "modules": [(n, id(m), type(m), m.training) for n, m in model.named_modules()],
        "tensors": [
            (n, id(t), t.data_ptr(), t._version, t.requires_grad, t.grad)
            for n, t in [*model.named_parameters(), *model.named_buffers()]
        ],
        "attributes": {
            n: {k: dict(v) if isinstance(v, dict) else v for k, v in own.items()}
            for n, own in attributes.items()
        },
        "random": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
    }


READ = {
    "resnet18": lambda: build("resnet18"),
    "remembering": Remembering,
    "python_random": lambda: nn.Sequential(conv_norm(3, 8), WrittenBlock(python_random)),
    "numpy_random": lambda: nn.Sequential(conv_norm(3, 8), WrittenBlock(numpy_random)),
    "stochastic_depth": NETS["stochastic_depth"].build,
    "functional": NETS["functional"].build,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", one_in(3, READ))
def test_find_blocks_changes_nothing(name, training):
    model = READ[name]().train(training)
    model.register_forward_hook(lambda *_: None)
    bytes_before = bytes_of(model)
    before = state_of(model)
    find_blocks(model)
    assert state_of(model) == before
    assert bytes_of(model) == bytes_before


def bytes_of(model):  # which are equal even where weights that nobody drew are NaN
    return {k: v.numpy().tobytes() for k, v in model.state_dict().items()}


@pytest.mark.slow
def test_finding_is_repeatable_and_a_copy_gives_the_same():
    model = build("mobilenet_v2")
    assert find_blocks(model) == find_blocks(model) == find_blocks(copy.deepcopy(model))


# --- words ------------------------------------------------------------------------------------


def test_a_line_says_name_kind_widths_and_split():
    line = str(find_blocks(build("resnet50"))[3])
    for part in (
        *("layer2.0", "bottleneck", "256→128→128→512", "1×1,3×3,1×1", "stride 2", "hidden 128"),
        *("projection", "matched-width (exact: shared-trunk)"),
    ):
        assert part in line
    assert "\n" not in line


def test_a_line_of_a_near_miss_says_the_reason():
    model = nn.Sequential(conv_norm(3, 8), WrittenBlock(read_elsewhere))
    (block,) = find_blocks(model)
    assert str(block) == f"{block.name}  {block.kind}  left dense: {block.reason}"
    assert block.name.startswith("1")


REFUSING = {
    "swin_t": models.swin_t,
    "densenet121": models.densenet121,
    "shufflenet": models.shufflenet_v2_x0_5,
    "vit_b_32": models.vit_b_32,
    **{name: idiom.build for name, idiom in IDIOMS.items()},
}


@pytest.mark.parametrize("name", one_in(4, REFUSING))
def test_every_reason_names_a_line(name):
    size = IDIOMS[name].size if name in IDIOMS else (3, 224, 224)
    for block in find_blocks(REFUSING[name](), size):
        assert block.reason is None or re.search(r"\w\.py:\d", block.reason), str(block)


def test_what_cannot_be_traced_names_its_forward():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return x + nn.Sequential(nn.Conv2d(3, 3, 1))(self.a(x))

    (block,) = find_blocks(nn.Sequential(Odd()))
    assert re.search(r"cannot be traced .*\(test_find_blocks.py:\d+\)", block.reason)
