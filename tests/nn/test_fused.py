"""In training, sub-blocks computed together give the same numbers as one by one."""

import copy
import functools
import itertools
import pickle

import pytest
import torch
from nets import CIFAR, Residual, randomised
from quick import one_in, slow_unless
from small_nets import IMAGE, Net, basic
from torch import nn
from torchvision import models

from dmnn_convert import dynamize, force_gates
from dmnn_convert.io import zoo
from dmnn_convert.nn import block as blocks
from dmnn_convert.nn import fused as merged
from dmnn_convert.nn import multi_path_blocks

NETS = {"resnet20": (f"{CIFAR}:resnet20", 16), "resnet50": ("resnet50", 64)}
NETS["mobilenet_v2"] = ("mobilenet_v2", 64)
FORMS = ("per-sub-block", "shared")
BATCH = 4


@functools.lru_cache(maxsize=2)  # ResNet-50 takes 200 MB each time
def converted(name, N=2, tail_norm="per-sub-block", split="matched"):
    """Return a converted model in training, in float64; nobody changes it."""
    arch, size = NETS[name]
    torch.manual_seed(0)
    source = zoo.build(arch, num_classes=5)
    for module in source.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    options = {"split": split, "tail_norm": tail_norm, "input_size": (3, size, size)}
    return dynamize(source, N, **options).model.double().train()


def images(name, batch=BATCH):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, *2 * NETS[name][1:], generator=generator).double()


def train(model, x, loss=lambda y: y.square().mean()):
    """Take a step's forward and backward; return output, gradients and statistics."""
    torch.manual_seed(0)
    y = model(x)
    loss(y.float() if y.dtype != torch.float64 else y).backward()
    return y, {n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())


def one_by_one(model, x, monkeypatch):
    """Do the same on a copy that merges nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "gated_sum", lambda *_: None)
        return train(copy.deepcopy(model), x)


@pytest.fixture
def merging(monkeypatch):
    """Return a list that grows by whether a block was merged, whenever one trains."""
    done = []

    def seen(sub_blocks, *arguments):
        total = merged.gated_sum(sub_blocks, *arguments)
        if sub_blocks[0].training:  # a conversion's self-check evaluates
            done.append(total is not None)
        return total

    monkeypatch.setattr(blocks, "gated_sum", seen)
    return done


def assert_same(got, expected, tolerance=1e-7):
    """The models are float64, but for gates and controllers, which are always float32."""
    for ours, theirs in zip(got[1:], expected[1:], strict=True):
        assert ours.keys() == theirs.keys()
        # Gradients that are zero but for rounding have no size of their own.
        largest = max(t.abs().max() for t in theirs.values() if t is not None)
        for name, tensor in theirs.items():
            assert (ours[name] is None) == (tensor is None), name
            if tensor is not None:
                assert (ours[name] - tensor).abs().max() <= tolerance * largest, name
    assert (got[0] - expected[0]).abs().max() <= tolerance * expected[0].abs().max()


@pytest.mark.parametrize(
    ("name", "N", "tail_norm"),
    slow_unless(
        lambda name, N, form: name == "resnet20" and N == 3,
        itertools.product(NETS, (2, 3, 4), FORMS),
    ),
)
def test_forward_gradients_and_statistics_are_those_one_by_one(
    name, N, tail_norm, merging, monkeypatch
):
    """N=3 makes sub-blocks of different widths."""
    model, x = copy.deepcopy(converted(name, N, tail_norm)), images(name)
    expected = one_by_one(model, x, monkeypatch)
    assert_same(train(model, x), expected)
    assert len(merging) == len(multi_path_blocks(model))
    # Inverted residuals make many channels of few, and are left as they are.
    assert all(merging) if name != "mobilenet_v2" else not any(merging)


@pytest.mark.slow
@pytest.mark.parametrize("tail_norm", FORMS)
def test_a_shared_trunk(tail_norm, merging, monkeypatch):
    model = copy.deepcopy(converted("resnet50", 2, tail_norm, "exact"))
    expected = one_by_one(model, images("resnet50"), monkeypatch)
    assert_same(train(model, images("resnet50")), expected)
    assert all(merging)


@pytest.mark.parametrize("tail_norm", one_in(2, FORMS))
def test_several_steps_of_an_optimizer_end_at_the_same_weights(tail_norm, monkeypatch):
    model, x = copy.deepcopy(converted("resnet20", 2, tail_norm)), images("resnet20")
    other = copy.deepcopy(model)
    for each in (model, other):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            train(each, x)
            optimizer.step()
        monkeypatch.setattr(blocks, "gated_sum", lambda *_: None)
    for name, tensor in other.state_dict().items():
        assert torch.allclose(model.state_dict()[name], tensor, rtol=1e-7, atol=1e-9), name
    tracked = [b for n, b in model.named_buffers() if n.endswith("num_batches_tracked")]
    assert all(int(b) == 3 for b in tracked)


# --- number formats and layouts ---------------------------------------------------------------


@pytest.mark.parametrize("tail_norm", one_in(2, FORMS))
@pytest.mark.parametrize("name", slow_unless({"resnet20"}.__contains__, ["resnet20", "resnet50"]))
def test_under_autocast(name, tail_norm, merging, monkeypatch):
    model = copy.deepcopy(converted(name, 2, tail_norm)).float()
    x = images(name, 16).float()
    exact = one_by_one(model, x, monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        expected = one_by_one(model, x, monkeypatch)
        got = train(model, x)
    assert all(merging)
    assert got[0].dtype == expected[0].dtype
    assert all(g is None or g.dtype == torch.float32 for g in got[1].values())
    # As far from float32 as the sub-blocks one by one are.
    for kind in (1, 2):
        assert apart(got[kind], exact[kind]) <= 1.5 * apart(expected[kind], exact[kind]) + 1e-6


def apart(some, others):
    """Return the root of the mean squared difference."""
    pairs = [(t.double(), others[n].double()) for n, t in some.items() if t is not None]
    return torch.cat([(a - b).flatten() for a, b in pairs]).square().mean().sqrt()


@pytest.mark.parametrize("tail_norm", FORMS)
@pytest.mark.parametrize(
    "dtype", slow_unless({torch.bfloat16}.__contains__, [torch.bfloat16, torch.float16])
)
def test_a_model_of_half_precision(dtype, tail_norm, merging, monkeypatch):
    model = copy.deepcopy(converted("resnet20", 2, tail_norm)).to(dtype)
    x = images("resnet20").to(dtype)
    expected = one_by_one(model, x, monkeypatch)
    got = train(model, x)
    assert all(merging)
    assert got[0].dtype == dtype
    assert_same(got, expected, 0.2)


@pytest.mark.parametrize("tail_norm", FORMS)
def test_channels_last(tail_norm, merging, monkeypatch):
    model = copy.deepcopy(converted("resnet20", 2, tail_norm)).to(memory_format=torch.channels_last)
    x = images("resnet20").to(memory_format=torch.channels_last)
    seen = []
    multi_path_blocks(model)[0].register_forward_hook(lambda m, i, y: seen.append(y))
    expected = one_by_one(model, x, monkeypatch)
    assert_same(train(model, x), expected)
    assert all(merging)
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in seen)


# --- what is called as it stands --------------------------------------------------------------


def of_first_block(model, path):
    return multi_path_blocks(model)[0].sub_blocks[1].get_submodule(path)


@pytest.mark.parametrize("path", ["", "conv1", "bn1", "conv2"])
@pytest.mark.parametrize(
    "kind",
    slow_unless(
        "full_backward_hook".__eq__,
        ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"],
    ),
)
def test_hooks_are_called(path, kind, merging, monkeypatch):
    model, x = copy.deepcopy(converted("resnet20", 2, "shared")), images("resnet20")
    expected = one_by_one(model, x, monkeypatch)
    calls = []
    register = getattr(of_first_block(model, path), f"register_{kind}")
    register(lambda *arguments: calls.append(arguments))
    assert_same(train(model, x), expected)
    assert len(calls) == 1
    assert all(merging[1:])


def test_a_hook_of_all_modules_sees_all(monkeypatch):
    model, x = copy.deepcopy(converted("resnet20")), images("resnet20")
    expected = one_by_one(model, x, monkeypatch)
    seen = set()
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, y: seen.add(m))
    try:
        assert_same(train(model, x), expected)
    finally:
        handle.remove()
    leaves = {m for m in model.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)}
    assert leaves <= seen


class Louder(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def subclass(layer):
    layer.__class__ = Louder


def own_forward(layer):
    layer.forward = lambda x: 2 * nn.Conv2d.forward(layer, x)


def parametrised(layer):
    nn.utils.parametrizations.weight_norm(layer)


def reflecting(layer):
    layer.padding_mode = "reflect"


def strided(layer):
    layer.padding, layer.dilation = (2, 2), (2, 2)


@pytest.mark.parametrize("change", [subclass, own_forward, parametrised, reflecting, strided])
@pytest.mark.parametrize("path", slow_unless("conv2".__eq__, ["conv1", "conv2"]))
def test_other_convolutions_are_called_as_they_stand(path, change, merging, monkeypatch):
    model, x = copy.deepcopy(converted("resnet20", 2, "shared")), images("resnet20")
    change(of_first_block(model, path))
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "gated_sum", lambda *_: None)
        expected = train(model, x)
        gradients = {name: g.clone() for name, g in expected[1].items() if g is not None}
    model.zero_grad()
    y, got, _ = train(model, x)
    assert torch.allclose(y, expected[0], rtol=1e-9)
    largest = max(g.abs().max() for g in gradients.values())
    assert all((got[n] - g).abs().max() <= 1e-7 * largest for n, g in gradients.items())
    assert merging[0] == (path == "conv2")


def frozen(norm):
    norm.eval()


def cumulative(norm):
    norm.momentum = None


def without_statistics(norm):
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def untracked(norm):
    norm.track_running_stats = False


def bigger_eps(norm):
    norm.eps = 0.1


@pytest.mark.parametrize("change", [frozen, cumulative, without_statistics, untracked, bigger_eps])
def test_other_norms_are_called_as_they_stand(change, merging, monkeypatch):
    model, x = copy.deepcopy(converted("resnet20")), images("resnet20")
    change(of_first_block(model, "bn1"))
    expected = one_by_one(model, x, monkeypatch)
    assert_same(train(model, x), expected)
    assert merging == [False] + [True] * 8


def test_evaluation_is_left_alone(merging):
    model = copy.deepcopy(converted("resnet20")).eval()
    with torch.no_grad():
        model(images("resnet20"))
    assert not merging


def test_frozen_parameters_get_no_gradient(merging):
    model = copy.deepcopy(converted("resnet20"))
    layer = of_first_block(model, "conv1")
    layer.weight.requires_grad_(False)
    train(model, images("resnet20"))
    assert layer.weight.grad is None
    assert multi_path_blocks(model)[0].sub_blocks[0].conv1.weight.grad is not None
    assert all(merging)


def test_a_bias_of_the_last_convolutions_is_gated(merging, monkeypatch):
    layers = nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
    net = Residual(nn.Sequential(*layers))
    model = dynamize(net, 2, input_size=(6, 8, 8), tail_norm="shared").model.double().train()
    x = torch.randn(BATCH, 6, 8, 8).double()
    expected = one_by_one(model, x, monkeypatch)
    assert_same(train(model, x), expected)
    assert merging == [True]


# --- copies, compilation ----------------------------------------------------------------------


@pytest.mark.slow
def test_copies_and_pickles_merge_too(merging, monkeypatch):
    source = randomised(models.resnet18(num_classes=5)).eval()
    model = dynamize(source, 2, input_size=(3, 32, 32)).model.double().train()
    x = torch.randn(BATCH, 3, 32, 32).double()
    expected = one_by_one(model, x, monkeypatch)
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(train(made, x), expected)
    assert len(merging) == 16
    assert all(merging)


@pytest.mark.slow
@pytest.mark.parametrize("tail_norm", FORMS)
@pytest.mark.parametrize("name", NETS)
def test_training_compiles_whole(name, tail_norm):
    model, x = copy.deepcopy(converted(name, 2, tail_norm)), images(name)
    other = copy.deepcopy(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gates = (torch.rand(BATCH, sum(multi_path_blocks(model)[0].controller.chain.sizes)) < 0.6) * 1.0
    with force_gates(model, gates):
        compiled(x).square().mean().backward()
    with force_gates(other, gates):
        y = other(x)
        y.square().mean().backward()
    gradients = [{n: p.grad for n, p in m.named_parameters()} for m in (model, other)]
    buffers = [dict(m.named_buffers()) for m in (model, other)]
    assert_same((y, gradients[0], buffers[0]), (y, gradients[1], buffers[1]))
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_statistics_that_are_not_tracked_do_not_move(before):
    def freeze(model):
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.track_running_stats = False

    source = Net(basic(8, 8), basic(8, 16))
    if before:
        freeze(source)
    model = dynamize(source, 2, split="exact", input_size=IMAGE).model.train()
    freeze(model)
    held = {name: b.clone() for name, b in model.named_buffers() if "running" in name}
    model(torch.randn(4, *IMAGE)).sum().backward()
    assert len(held) > 8
    assert all(torch.equal(b, held[name]) for name, b in model.named_buffers() if name in held)
