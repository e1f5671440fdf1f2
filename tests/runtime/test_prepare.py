"""Prepared models equal the masked form, for every gate pattern and batch size."""

import copy
import itertools
import json
import logging
import pickle
import threading
import time
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from norms import draw_norms, normal, uniform
from quick import one_in, slow_unless
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

import dmnn_convert
import dmnn_convert.nn.controller
from dmnn_convert import ArgumentError, GateConfig, dynamize, force_gates, prepare, record_paths
from dmnn_convert.nn import MultiPathBlock
from dmnn_convert.runtime import folded_controller as folded
from dmnn_convert.runtime import packed as packed_conv
from dmnn_convert.runtime import tuning
from dmnn_convert.runtime.costs import Costs, Line, line_through
from dmnn_convert.runtime.decision import Decision
from dmnn_convert.runtime.fixed import fixed_at
from dmnn_convert.runtime.layer import layer_of, ungrouped
from dmnn_convert.runtime.network import packed
from dmnn_convert.runtime.prepared_block import PreparedBlock
from dmnn_convert.runtime.workers import Workers, is_divisible

SIZE = 64
NETS = {
    "resnet18": (zoo.resnet18, {}),
    "resnet18-shared": (zoo.resnet18, {"tail_norm": "shared"}),
    "resnet18-N4-shared": (zoo.resnet18, {"N": 4, "tail_norm": "shared"}),
    "resnet18-N3": (zoo.resnet18, {"N": 3}),
    "resnet50": (zoo.resnet50, {}),
    "resnet50-exact": (zoo.resnet50, {"split": "exact"}),
    "resnet50-exact-N4": (zoo.resnet50, {"split": "exact", "N": 4}),
    "mobilenet_v2": (zoo.mobilenet_v2, {}),
    "mobilenet_v2-N3": (zoo.mobilenet_v2, {"N": 3}),
    "resnext50": (zoo.resnext50_32x4d, {}),
    "regnet_x": (zoo.regnet_x_400mf, {}),
}


TRAINED = {
    "running_mean": normal(0.1),
    "running_var": uniform(0.5, 1.5),
    "weight": uniform(0.3, 1),
    "bias": normal(0.1),
}


def as_trained(model):
    """Give norms statistics and weights that differ, as trained ones do."""
    torch.manual_seed(0)
    return draw_norms(model, TRAINED).eval()


def converted(name):
    build, options = NETS[name]
    options = {"N": 2, "input_size": (3, SIZE, SIZE), **options}
    return dynamize(as_trained(build()), **options).model.eval()


def different(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DMNN_CONVERT_CACHE", str(tmp_path / "cache" / "autotune.json"))
    return tmp_path / "cache" / "autotune.json"


def images(count, size=SIZE):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


LARGE = (
    *("resnet50", "resnet50-exact", "resnet50-exact-N4", "resnet18", "resnet18-N3"),
    *("mobilenet_v2-N3", "resnext50", "regnet_x", "resnet18-shared"),
)


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in NETS],
)
def pair(request, tmp_path_factory):
    model = converted(request.param)
    ready = prepare(model, images(1), autotune=False)
    blocks = [m for m in ready.modules() if isinstance(m, PreparedBlock)]
    assert len(blocks) == len(blocks[0].controller.chain.sizes)
    return model, ready


@pytest.mark.parametrize("gates", slow_unless({0.5}.__contains__, [True, False, 0.2, 0.5, 0.8]))
@pytest.mark.parametrize("batch", slow_unless({5}.__contains__, [1, 2, 5]))
def test_equals_the_masked_form(pair, gates, batch):
    model, ready = pair
    x = images(batch)
    dmnn_convert.set_execution(model, "masked")
    with torch.no_grad(), force_gates(model, gates), record_paths(model) as expected_paths:
        expected = model(x)
    with force_gates(ready, gates), record_paths(ready.network) as paths:
        got = ready(x)
    assert different(got, expected) < 1e-5
    assert torch.equal(paths.gates, expected_paths.gates)


@pytest.mark.parametrize("way", ["views", "gathered", "masked"])
def test_every_way_of_a_batch_gives_the_same(pair, way, monkeypatch):
    model, ready = pair

    def plan(self, counts):
        if way == "masked" and self.masked is not None:
            return None
        return dict.fromkeys(counts, "gathered" if way == "masked" else way)

    monkeypatch.setattr(Costs, "plan", plan)
    gates = (torch.rand(6, sum(ready_sizes(ready)), generator=seeded(3)) < 0.6).float()
    with torch.no_grad(), force_gates(model, gates):
        expected = model(images(6))
    with force_gates(ready, gates):
        got = ready(images(6))
    assert different(got, expected) < 1e-5


def test_nothing_runs_unpacked(pair):
    kinds = {type(module) for module in pair[1].modules()}
    assert not kinds & {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6}


@pytest.mark.parametrize("threads", slow_unless({2}.__contains__, [1, 2, 3]))
@pytest.mark.parametrize("gates", slow_unless({"given", None}.__contains__, ["given", 0.5, None]))
def test_images_apart_give_what_they_give_together(pair, gates, threads):
    ready, x = copy.copy(pair[1]), images(5)
    ready.workers = Workers(threads)
    forced = (torch.rand(5, sum(ready_sizes(ready)), generator=seeded(4)) < 0.5).float()
    gates = forced if gates == "given" else gates
    with nullcontext() if gates is None else force_gates(ready, gates):
        together = ready(x)
    ready.ways = {tuple(x.shape): "apart"}
    ready.threads = threads
    seen, run = [], ready.run_together
    ready.run_together = lambda images: seen.append((len(images), current_name())) or run(images)
    before = torch.get_num_threads()
    for _ in range(2):
        with nullcontext() if gates is None else force_gates(ready, gates):
            apart = ready(x)
        assert different(apart, together) < 1e-5
    assert [count for count, _ in seen] == [1] * 10
    assert all(name.startswith("dmnn_convert") != (threads == 1) for _, name in seen)
    assert torch.get_num_threads() == before
    assert ready.chain.forcing is None
    with record_paths(ready.network) as paths:
        ready(x)
    assert paths.gates.shape == forced.shape


@pytest.mark.parametrize("gates", slow_unless({None}.__contains__, [False, 0.5, None]))
@pytest.mark.parametrize("lack", [False, True])
def test_a_network_can_be_masked_as_a_whole(pair, gates, lack):
    model, ready = pair[0], copy.deepcopy(pair[1])
    ready.default = "masked"
    for block in (m for m in ready.modules() if isinstance(m, PreparedBlock)):
        block.run = never_runs
        block.masked = None if lack else block.masked
    x = images(3)
    dmnn_convert.set_execution(model, "masked")
    forced = (
        [nullcontext()] * 2 if gates is None else [force_gates(m, gates) for m in (model, ready)]
    )
    with torch.no_grad(), forced[0], record_paths(model) as expected_paths:
        expected = model(x)
    with forced[1], record_paths(ready.network) as paths:
        got = ready(x)
    assert different(got, expected) < 1e-5
    assert torch.equal(paths.gates, expected_paths.gates)
    for ours, theirs in zip(paths.gate_logits, expected_paths.gate_logits, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
    assert not ready.chain.current().masked


@pytest.mark.parametrize("native", slow_unless(bool, [True, False]))
@pytest.mark.parametrize("gates", slow_unless({None}.__contains__, [False, 0.2, None]))
def test_controllers_see_what_the_models_see(pair, gates, native, monkeypatch):
    if not native:
        monkeypatch.setattr(folded, "_controller", None)
    model, ready = pair
    for batch in (1, 4, 1, 2):  # what skipped blocks hand on, and memory that is used again
        seen = []
        for network in (model, ready.network):
            forced = nullcontext() if gates is None else force_gates(network, gates)
            with torch.no_grad(), forced, record_paths(network) as paths:
                (model if network is model else ready)(images(batch))
            seen.append(paths.gate_logits)
        for ours, theirs in zip(*seen, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_gates_are_those_of_when_they_were_forced():
    model = converted("resnet18")
    ready = prepare(model, images(1), autotune=False)
    gates = torch.ones(2, sum(ready_sizes(ready)))
    with force_gates(ready, gates), force_gates(model, gates), torch.no_grad():
        before = ready(images(2))
        gates.zero_()
        assert different(ready(images(2)), model(images(2))) < 1e-5
        assert torch.equal(ready(images(2)), before)


@pytest.mark.slow
@pytest.mark.parametrize("default", slow_unless("together".__eq__, ["together", "masked"]))
def test_under_autocast_controllers_stay_exact(default):
    ready = prepare(converted("resnet18"), images(1), autotune=False)
    ready.default = default
    with torch.autocast("cpu", torch.bfloat16), record_paths(ready.network) as paths:
        ready(images(2))
    assert {logits.dtype for logits in paths.gate_logits} == {torch.float32}


def test_precision_said_in_the_newer_way_is_understood(monkeypatch):
    for said, expected in (("ieee", False), ("tf32", True)):
        newer = SimpleNamespace(fp32_precision=said)
        monkeypatch.setattr(torch.backends.cudnn, "conv", newer, raising=False)
        assert tuning.tf32() == expected
    monkeypatch.delattr(torch.backends.cudnn, "conv")
    assert tuning.tf32() == torch.backends.cudnn.allow_tf32


def never_runs(*_):
    raise RuntimeError("ran some of the sub-blocks")


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_layer_without_groups_computes_the_same(groups):
    conv = nn.Conv2d(12, 6 * groups, 3, padding=1, groups=groups)
    layer = layer_of(conv)
    x, whole = images(2).repeat(1, 4, 1, 1), ungrouped(layer)
    assert (whole.groups, whole.weight.shape) == (1, (6 * groups, 12, 3, 3))
    assert different(F.conv2d(x, whole.weight, whole.bias, padding=1), conv(x)) < 1e-6


def current_name():
    return threading.current_thread().name


@pytest.mark.slow
def test_images_apart_only_where_nothing_says_otherwise(monkeypatch):
    ready = copy.copy(prepare(converted("resnet18"), images(1), autotune=False))
    ready.ways = {tuple(images(2).shape): "apart"}
    ready.workers = Workers(2)

    def never(*_):
        raise RuntimeError("ran apart")

    monkeypatch.setattr(ready.workers, "map", never)
    ready(images(2))  # with one thread, which is not what was measured
    ready.threads = 2
    with torch.autocast("cpu"), pytest.raises(ArgumentError, match="float32"):
        ready(images(2).bfloat16())
    with torch.autocast("cpu"):
        ready(images(2))
    ready(images(3))
    with pytest.raises(RuntimeError, match="ran apart"):
        ready(images(2))


def test_after_a_failing_image_none_goes_on():
    done = []

    def fail(image, i):
        time.sleep(0.01)
        done.append(i)
        raise ValueError(f"image {i}")

    workers = Workers(2)
    with pytest.raises(ValueError, match="image 0"):
        workers.map(fail, images(30))
    count = len(done)
    assert count < 30
    assert len(workers.map(lambda image, i: image, images(3))) == 3
    assert len(done) == count


def test_workers_that_cannot_start_leave_nothing_behind(monkeypatch):
    start, started = threading.Thread.start, []

    def refuse(self):
        started.append(self)
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(self)

    before = torch.get_num_threads()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        Workers(2).map(lambda image, i: image, images(2))
    monkeypatch.undo()
    started[0].join(10)
    assert not started[0].is_alive()
    found = []
    asking = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    asking.start()
    asking.join()
    assert found == [before]


@pytest.mark.parametrize(
    ("run", "divisible"),
    [
        (lambda x: x.mean((2, 3)), True),
        (lambda x: x.mean((2, 3)).squeeze(), False),
        (lambda x: x.mean((1, 2, 3)), True),
        (lambda x: x.mean((1, 2, 3)).squeeze(), False),
        (lambda x: x - x.mean(0), False),
        (lambda x: {"out": x}, False),
        (lambda x: (x, x), False),
    ],
)
def test_images_are_taken_apart_only_where_each_gives_its_row(run, divisible):
    assert is_divisible(run, images(1)) == divisible


@pytest.mark.parametrize("native", slow_unless(bool, [True, False]))
def test_other_channels_are_refused(native, monkeypatch):
    if not native:
        monkeypatch.setattr(folded, "_controller", None)
    model = dynamize(nn.Sequential(zoo.resnet18().layer1).eval(), input_size=(64, 8, 8)).model
    ready = prepare(model.eval(), torch.randn(1, 64, 8, 8), autotune=False)
    for channels in (1, 63, 65):
        with pytest.raises(ArgumentError, match="64 channels"):
            ready(torch.randn(1, channels, 8, 8))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def ready_sizes(ready):
    return dmnn_convert.nn.controller.controllers(ready)[0].chain.sizes


def test_another_image_size_works(pair):
    model, ready = pair
    x = images(3, 96)
    with torch.no_grad(), force_gates(model, 0.5):
        expected = model(x)
    with force_gates(ready, 0.5):
        assert different(ready(x), expected) < 1e-5


CONFIGS = {
    "plain": GateConfig(),
    "unchained": GateConfig(chained=False),
    "normalized": GateConfig(normalized=True),
    "spread": GateConfig(spread=3.0),
}


@pytest.mark.parametrize(
    ("name", "native"),
    slow_unless(
        lambda name, native: name == "normalized" and not native,
        itertools.product(CONFIGS, (True, False)),
    ),
)
def test_decides_as_the_controllers_do(name, native, monkeypatch):
    if not native:
        monkeypatch.setattr(folded, "_controller", None)
    elif folded._controller is None:
        pytest.skip("there was no C compiler")
    torch.manual_seed(1)
    model = dynamize(
        as_trained(zoo.resnet18()), gate=CONFIGS[name], input_size=(3, SIZE, SIZE)
    ).model.eval()
    for controller in dmnn_convert.nn.controller.controllers(model):
        nn.init.normal_(controller.w3.weight)
        nn.init.normal_(controller.w3.bias)
        for norm in (controller.norm, controller.margin_norm):
            if norm is not None:
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.2, 2)
    ready = prepare(model, images(1), autotune=False)
    with torch.no_grad(), record_paths(model) as expected:
        model(images(16))
    with record_paths(ready.network) as paths:
        got = ready(images(16))
    assert 0 < paths.gates.mean() < 1
    assert torch.equal(paths.gates, expected.gates)
    for mine, theirs in zip(paths.gate_logits, expected.gate_logits, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)
    with torch.no_grad():
        assert different(got, model(images(16))) < 1e-5


def test_a_dense_network_is_packed_too():
    source = as_trained(zoo.resnet18())
    fast = packed(source, images(1))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    with torch.no_grad():
        expected = source(images(2))
        laid_out = images(2).contiguous(memory_format=torch.channels_last)
        assert different(fast(laid_out), expected) < 1e-5


@pytest.mark.slow
def test_works_without_private_operators(monkeypatch):
    monkeypatch.setattr(packed_conv, "ONEDNN", None)
    model = converted("resnet18")
    ready = prepare(model, images(1), autotune=False)
    convs = [m for m in ready.modules() if isinstance(m, packed_conv.PackedConv)]
    assert convs
    assert not any(conv.layouts for conv in convs)
    with torch.no_grad(), force_gates(model, 0.5):
        expected = model(images(4))
    with force_gates(ready, 0.5):
        assert different(ready(images(4)), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("gates", slow_unless({0.5}.__contains__, [True, False, 0.5]))
@pytest.mark.parametrize(
    "build",
    [pytest.param(zoo.efficientnet_b0, marks=pytest.mark.slow), zoo.mobilenet_v3_small],
)
def test_blocks_that_are_no_chains_keep_their_form_with_packed_parts(build, gates):
    model = dynamize(as_trained(build()), input_size=(3, SIZE, SIZE)).model.eval()
    ready = prepare(model, images(1), autotune=False)
    assert any(isinstance(m, MultiPathBlock) for m in ready.modules())
    assert not any(type(m) in (nn.Conv2d, nn.BatchNorm2d) for m in ready.modules())
    for batch in (1, 3):
        with torch.no_grad(), force_gates(model, gates), record_paths(model) as expected_paths:
            expected = model(images(batch))
        with force_gates(ready, gates), record_paths(ready.network) as paths:
            assert different(ready(images(batch)), expected) < 1e-5
        assert torch.equal(paths.gates, expected_paths.gates)


def test_the_source_stays_as_it_is():
    model = converted("resnet18")
    before = copy.deepcopy(model.state_dict())
    ready = prepare(model, images(1), autotune=False)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    x = images(2)
    given = x.clone()
    first = ready(x)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(ready(x), first)
    assert torch.equal(x, given)
    assert not any(m.training for m in model.modules())


class TwoBlocks(nn.Module):
    """Two small residual blocks, with something in between that a subclass says."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout()

    def block(self, x, i=0):
        y = torch.relu(self.norms[2 * i](self.convs[2 * i](x)))
        return self.norms[2 * i + 1](self.convs[2 * i + 1](y)) + x

    def forward(self, x):
        x = self.stem(x)
        return self.block(self.between(x, self.block(x)), 1)


class LeakyInPlace(TwoBlocks):
    def between(self, x, y):
        return F.leaky_relu(y, 0.1, inplace=True) + x


class EluInPlace(TwoBlocks):
    def between(self, x, y):
        return F.elu(y, inplace=True) + x


class DropsAndMultiplies(TwoBlocks):
    def between(self, x, y):
        return self.drop(y).mul_(2) + x


class AddsAnEarlierConvolution(TwoBlocks):
    def forward(self, x):
        x = self.stem(x)
        side = self.convs[4](x)
        return side + self.block(self.block(x), 1)


class WritesWhatOthersRead(TwoBlocks):
    def between(self, x, y):
        return self.convs[4](self.relu(y)) + y


class WritesAsAStatement(TwoBlocks):
    def between(self, x, y):
        self.relu(y)
        return y + x


class AddsToAnAlias(TwoBlocks):
    def between(self, x, y):
        f = y
        y += self.convs[4](x)
        return y + f


class WritesASlice(TwoBlocks):
    def between(self, x, y):
        y[:, :4].add_(1)
        return y + x


class WritesWhatAConvolutionRead(TwoBlocks):
    def between(self, x, y):
        z = self.convs[4](y)
        y = y.mul_(2)
        return y + z


class DropsInPlace(TwoBlocks):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(inplace=True)

    def between(self, x, y):
        return self.relu(self.drop(y)) + self.drop(x)


class DropsByKeyword(TwoBlocks):
    def between(self, x, y):
        return self.relu(self.drop(input=y)) + x


class NormsAndActs(TwoBlocks):
    def __init__(self):
        super().__init__()
        self.norm = BatchNormAct2d(8, act_layer=nn.ReLU, inplace=True)

    def between(self, x, y):
        return self.norm(self.convs[4](y))


class Closed(nn.Module):
    def forward(self, x):
        return F.relu(x, inplace=True) if len(x) else x


class HandsToAClosedModule(TwoBlocks):
    def __init__(self):
        super().__init__()
        self.closed = Closed()

    def between(self, x, y):
        return self.closed(y) + x


class PreActivation(TwoBlocks):
    def block(self, x, i=0):
        y = self.convs[2 * i](self.relu(self.norms[2 * i](x)))
        return self.convs[2 * i + 1](self.relu(self.norms[2 * i + 1](y))) + x

    def between(self, x, y):
        return self.relu(y)


class NamesItsArguments(TwoBlocks):
    def between(self, x, y):
        return self.convs[4](input=y) + x


class HasOurNames(TwoBlocks):
    def __init__(self):
        super().__init__()
        self.fast_0 = nn.Conv2d(8, 8, 1)
        self.fast_1 = nn.Conv2d(8, 8, 1)

    def between(self, x, y):
        return self.fast_1(self.fast_0(y)) + x


@pytest.mark.parametrize("gates", slow_unless({0.5}.__contains__, [False, 0.5, True]))
@pytest.mark.parametrize("net", one_in(4, TwoBlocks.__subclasses__()), ids=lambda net: net.__name__)
def test_what_is_written_in_place_is_what_others_read(net, gates):
    torch.manual_seed(0)
    # Whether the model is its source is not what is asked here.
    model = dynamize(as_trained(net()), input_size=(3, 16, 16), verify=False).model.eval()
    ready = prepare(model, images(1, 16), autotune=False)
    assert net is PreActivation or any(isinstance(m, PreparedBlock) for m in ready.modules())
    for batch in (1, 3):
        with torch.no_grad(), force_gates(model, gates):
            expected = model(images(batch, 16))
        with force_gates(ready, gates):
            assert different(ready(images(batch, 16)), expected) < 1e-5


@pytest.mark.parametrize(
    "net",
    [DropsInPlace, NormsAndActs, LeakyInPlace, DropsAndMultiplies, WritesWhatAConvolutionRead],
)
def test_what_only_overwrites_its_own_is_packed(net):
    model = dynamize(as_trained(net()), input_size=(3, 16, 16)).model.eval()
    ready = prepare(model, images(1, 16), autotune=False)
    assert not any(type(m) is nn.Conv2d for m in ready.modules())


def test_a_buffer_that_is_filled_anew_is_looked_at_anew():
    torch.manual_seed(1)
    net = nn.Sequential(zoo.resnet18().layer1)
    model = dynamize(as_trained(net), input_size=(64, 8, 8)).model.eval()
    for controller in dmnn_convert.nn.controller.controllers(model):
        nn.init.normal_(controller.w3.weight, 0, 5)
    ready = prepare(model, torch.randn(1, 64, 8, 8), autotune=False)
    buffer = torch.zeros(1, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    for seed in range(6):
        buffer.copy_(torch.randn(1, 64, 8, 8, generator=seeded(seed)))
        with torch.no_grad(), record_paths(model) as expected:
            model(buffer)
        with record_paths(ready.network) as paths:
            ready(buffer)
        assert torch.equal(paths.gates, expected.gates)


def test_no_image_gives_no_output(pair):
    model, ready = pair
    with torch.no_grad():
        expected = model(images(1)[:0])
    assert ready(images(1)[:0]).shape == expected.shape


@pytest.mark.slow
def test_tuning_is_kept_on_disk_and_used(own_cache, monkeypatch):
    model = converted("resnet18")
    ready = prepare(model, images(1), batch_sizes=(1, 4))
    held = json.loads(own_cache.read_text())["costs"]
    assert held
    sizes = {size for m in ready.modules() if isinstance(m, PreparedBlock) for size in m.costs}
    assert {size[0] for size in sizes} == {4}

    def never(*_):
        raise RuntimeError("measured again")

    monkeypatch.setattr(PreparedBlock, "measure", never)
    monkeypatch.setattr("dmnn_convert.runtime.tuning._interleaved", never)
    again = prepare(model, images(1), batch_sizes=(4,))
    with force_gates(ready, 0.5):
        expected = ready(images(4))
    with force_gates(again, 0.5):
        assert different(again(images(4)), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "entry",
    [
        {"x": 1},
        pytest.param({"views": [], "gathered": {}, "masked": None}, marks=pytest.mark.slow),
        pytest.param({"views": {}, "gathered": {}, "masked": None}, marks=pytest.mark.slow),
        pytest.param(
            {"views": {"1": -1}, "gathered": {"1": [0, 0]}, "masked": None}, marks=pytest.mark.slow
        ),
        pytest.param({"together": "x", "apart": -1.0}, marks=pytest.mark.slow),
    ],
)
def test_a_damaged_entry_is_measured_anew(own_cache, caplog, entry):
    model = converted("resnet18")
    prepare(model, images(1), batch_sizes=(2,))
    held = json.loads(own_cache.read_text())
    own_cache.write_text(json.dumps({**held, "costs": dict.fromkeys(held["costs"], entry)}))
    with caplog.at_level(logging.WARNING):
        prepare(model, images(1), batch_sizes=(2,))
    assert "damaged" in caplog.text
    values = list(json.loads(own_cache.read_text())["costs"].values())
    assert sum(set(value) == {"together", "apart"} for value in values) == 1
    blocks = [value for value in values if "views" in value]
    assert len(blocks) == len(values) - 1
    assert all(set(value["views"]) == {"1", "2", "3"} for value in blocks)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", slow_unless("{".__eq__, ["", "{", "[]", '{"format": 1, "costs": 3}', '{"format": 0}'])
)
def test_a_damaged_cache_is_written_anew(own_cache, caplog, text):
    own_cache.parent.mkdir()
    own_cache.write_text(text)
    with caplog.at_level(logging.WARNING):
        prepare(converted("resnet18"), images(1), batch_sizes=(2,))
    assert "autotune.json" in caplog.text or text == '{"format": 0}'
    assert json.loads(own_cache.read_text())["costs"]


@pytest.mark.slow
@pytest.mark.parametrize("where", slow_unless("cat".__eq__, ["cat", "reorder"]))
def test_too_little_memory_for_all_subsets_runs_one_after_another(where, monkeypatch, caplog):
    model = converted("resnet18")
    if where == "cat":

        def full(*_, **__):
            raise RuntimeError("DefaultCPUAllocator: not enough memory")

        monkeypatch.setattr("dmnn_convert.runtime.layer._stacked", full)
    else:
        pack = packed_conv.PackedConv.pack

        def full(self, size):
            # Both sub-blocks of a block of the first stage: the second stage's have strides.
            if (self.in_channels, self.out_channels, self.window[1]) == (64, 64, [1, 1]):
                raise RuntimeError("DefaultCPUAllocator: not enough memory")
            return pack(self, size)

        monkeypatch.setattr(packed_conv.PackedConv, "pack", full)
        model.conv1.weight.data.normal_()
    with caplog.at_level(logging.WARNING):
        ready = prepare(model, images(1), autotune=False)
    assert "no memory" in caplog.text
    for gates in (True, 0.5):
        with torch.no_grad(), force_gates(model, gates):
            expected = model(images(3))
        with force_gates(ready, gates):
            assert different(ready(images(3)), expected) < 1e-5


@pytest.mark.slow
def test_two_threads_give_what_one_gives():
    model = converted("resnet18")
    for controller in dmnn_convert.nn.controller.controllers(model):
        nn.init.normal_(controller.w3.weight, 0, 3)
    ready = prepare(model, images(1), autotune=False)
    forced = [torch.randint(2, (n, sum(ready_sizes(ready)))).float() for n in (2, 3)]
    expected = [_forced_and_free(ready, gates) for gates in forced]
    got = [[], []]

    def work(i):
        for _ in range(5):
            got[i].append(_forced_and_free(ready, forced[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, wanted in zip(got, expected, strict=True):
        assert len(mine) == 5
        assert all(torch.equal(a, b) for run in mine for a, b in zip(run, wanted, strict=True))


def _forced_and_free(ready, gates):
    x = images(len(gates))
    with force_gates(ready, gates):
        forced = ready(x)
    with record_paths(ready.network) as paths:
        free = ready(x)
    return forced, free, paths.gates


@pytest.mark.slow
def test_copies_and_moves():
    ready = prepare(converted("resnet18"), images(1), autotune=False, threads=1)
    twin = copy.deepcopy(ready)
    assert torch.equal(twin(images(2)), ready(images(2)))
    assert ready.to("cpu") is ready
    assert ready.eval() is ready
    for bad in (ready.half, lambda: ready.to("meta"), ready.train):
        with pytest.raises(ArgumentError, match="prepare"):
            bad()
    with pytest.raises(ArgumentError, match="Save the model"):
        pickle.dumps(ready)


def test_bad_calls_say_what_to_do():
    model = converted("resnet18")
    cases = (
        (lambda: prepare(model.train(), images(1)), r"model\.eval\(\)"),
        (lambda: prepare(model.eval(), torch.randn(3, 64, 64)), r"\(B, C, H, W\)"),
        (lambda: prepare(model, [1]), "list"),
        (lambda: prepare(model, images(1).to("meta")), "meta"),
        (lambda: prepare(model, images(1), batch_sizes=()), "ints >= 1"),
        (lambda: prepare(model, images(1), batch_sizes=(0,)), "ints >= 1"),
        (lambda: prepare(model, images(1), batch_sizes=4), r"\(4,\)"),
        (lambda: prepare(model, images(1).double()), "float64"),
        (lambda: prepare(model, torch.randn(1, 5, 64, 64)), r"\(1, 5, 64, 64\)"),
        (lambda: prepare(model, images(1), threads=0), "int >= 1"),
    )
    for call, words in cases:
        with pytest.raises(ArgumentError, match=words):
            call()
    ready = prepare(model, images(1), autotune=False)
    for bad in (images(1).to("meta"), images(1).double()):
        with pytest.raises(ArgumentError, match=r"images\.to"):
            ready(bad)
    for bad in ([images(1)], images(1)[0]):
        with pytest.raises(ArgumentError, match=r"\(B, C, H, W\)"):
            ready(bad)


@pytest.mark.slow
def test_a_fixed_path_equals_forced_gates():
    model = converted("mobilenet_v2")
    ready = prepare(model, images(1), autotune=False)
    with record_paths(ready.network) as paths, force_gates(ready, 0.5):
        ready(images(1))
    static = fixed_at(ready, paths.gates[0])
    assert not any(isinstance(m, Decision) for m in static.network.children())
    with force_gates(ready, paths.gates):
        assert torch.equal(static(images(1)), ready(images(1)))
    with pytest.raises(dmnn_convert.GateMismatchError, match="sub-blocks"):
        fixed_at(ready, torch.ones(3))
    with pytest.raises(dmnn_convert.GateMismatchError, match="no shortcut"):
        fixed_at(ready, torch.zeros(sum(ready_sizes(ready))))


def test_plans_take_the_cheapest_way():
    costs = Costs(
        {1: 2.0, 2: 2.0, 3: 4.0},
        {1: Line(3.0, 1.0), 2: Line(3.0, 1.0), 3: Line(3.0, 2.0)},
        Line(0.0, 2.5),
    )
    assert costs.plan(Counter({1: 1, 2: 5})) == {1: "views", 2: "gathered"}  # 2 + 8, not 15
    assert costs.plan(Counter({3: 3})) is None  # 9 is more than 7.5
    assert Costs.from_dict(json.loads(json.dumps(costs.to_dict()))) == costs


def test_a_line_through_two_measurements():
    assert line_through(2, 4.0, 6, 8.0) == Line(2.0, 1.0)
    assert line_through(2, 4.0, 2, 6.0) == Line(0.0, 3.0)
    assert line_through(2, 4.0, 6, 2.0) == Line(4.0, 0.0)
