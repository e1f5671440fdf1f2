"""Reconstruction brings approximate blocks closer to the source and leaves the rest alone."""

import copy

import pytest
import torch
from quick import one_in, slow_unless
from small_nets import IMAGE, Net, ResidualReLU, basic, basic_net, bottleneck, images, settled
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from dmnn_convert import (
    ArgumentError,
    MultiPathBlock,
    block_errors,
    calibrate,
    dynamize,
    force_gates,
    reconstruct,
)
from dmnn_convert.nn import conversion_of
from dmnn_convert.refit.least_squares import LeastSquares
from dmnn_convert.refit.reconstruct import _Places
from dmnn_convert.split.select import index_choice


def bottlenecks():
    return Net(bottleneck(8, 16, 16), bottleneck(16, 16, 16, stride=2))


def resnet():
    return ResNet(Bottleneck, [2, 1, 1, 1], num_classes=5, width_per_group=16)


def output(net, x):
    net = copy.deepcopy(net).eval()
    with torch.no_grad(), force_gates(net, True):
        return net(x)


def off_by(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


# --- how near it comes ------------------------------------------------------------------------

NETS = {"bottlenecks": (bottlenecks, IMAGE), "resnet": (resnet, (3, 32, 32))}


@pytest.mark.parametrize("name", slow_unless("bottlenecks".__eq__, NETS))
@pytest.mark.parametrize("N", [2, 4])
def test_no_block_gets_worse_and_all_together_get_better(name, N):
    build, size = NETS[name]
    x = images(64, size=size)
    source = settled(build(), x).eval()
    model, _ = dynamize(source, N, input_size=size)
    before = block_errors(source, model, x)[""]
    errors = reconstruct(model, source, [x])
    assert list(errors) == list(conversion_of(model).config.blocks)
    assert all(0 < after <= before for before, after in errors.values())
    assert sum(b for b, _ in errors.values()) > 1.05 * sum(a for _, a in errors.values())
    assert block_errors(source, model, x)[""] < before


def test_errors_are_those_of_the_branch():
    x = images(16)
    source = settled(bottlenecks(), x).eval()
    model, _ = dynamize(source, 2, input_size=IMAGE)
    before = copy.deepcopy(model)
    errors = reconstruct(model, source, [x[:10], x[10:]])
    with torch.no_grad():
        stem = source.stem(x)
        expected = source.b1.branch(stem)
        for net, error in zip((before, model), errors["b1"], strict=True):
            got = sum(sub_block(stem) for sub_block in net.b1.multi_path.sub_blocks.eval())
            assert off_by(got, expected) == pytest.approx(error, rel=1e-3)


def test_errors_are_those_of_the_branch_behind_a_shared_norm():
    x = images(16)
    source = settled(bottlenecks(), x).eval()
    model, _ = dynamize(source, 2, input_size=IMAGE, tail_norm="shared")
    before = copy.deepcopy(model)
    errors = reconstruct(model, source, [x])
    assert errors["b1"][1] < errors["b1"][0]
    with torch.no_grad():
        stem = source.stem(x)
        expected = source.b1.branch(stem)
        for net, error in zip((before, model), errors["b1"], strict=True):
            block = net.b1.multi_path.eval()
            got = block.shared_norm(sum(sub_block(stem) for sub_block in block.sub_blocks))
            assert off_by(got, expected) == pytest.approx(error, rel=1e-3)


def test_a_failure_leaves_a_shared_norm_as_it_was():
    x = images(16)
    source = settled(bottlenecks(), x).eval()
    model, _ = dynamize(source, 2, input_size=IMAGE, tail_norm="shared")
    before = copy.deepcopy(model.state_dict())
    other = copy.deepcopy(source)
    other.b2.branch[6] = nn.Conv2d(16, 16, 1, 2, bias=False)  # as many weights, fewer places
    with pytest.raises(ArgumentError, match="b2 gives"):
        reconstruct(model, other, [x])
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())


def diagonal():
    """A bottleneck whose middle convolution joins no channels of different halves."""
    net = bottleneck(8, 16, 8)
    with torch.no_grad():
        net.branch[3].weight[:8, 8:] = 0
        net.branch[3].weight[8:, :8] = 0
    return net


def runs(coupling, widths, N):
    return index_choice(coupling.shape[1], coupling.shape[0], widths, N)


@pytest.mark.parametrize("tail_norm", ["per-sub-block", "shared"])
@pytest.mark.parametrize("calibrated", slow_unless(bool, [False, True]))
def test_what_can_be_exact_becomes_exact(calibrated, tail_norm, monkeypatch):
    monkeypatch.setattr("dmnn_convert.split.matched.energy_choice", runs)
    x = images(64)
    source = settled(nn.Sequential(nn.Conv2d(3, 8, 1), diagonal(), diagonal()), x).eval()
    model, _ = dynamize(source, 2, input_size=IMAGE, tail_norm=tail_norm)
    if calibrated:
        calibrate(model, [x])
    assert off_by(output(model, x), source(x)) > 0.05
    errors = reconstruct(model, source, [x], ridge=1e-10)
    assert all(before > 0.05 and after < 1e-4 for before, after in errors.values())
    new = images(8, seed=1)
    assert off_by(output(model, new), source(new)) < 1e-4


def conv1d_net():
    convs = [nn.Conv1d(8, 12, 1), nn.ReLU(), nn.Conv1d(12, 12, 3, 1, 1), nn.ReLU()]
    return nn.Sequential(
        nn.Conv1d(3, 8, 1), ResidualReLU(nn.Sequential(*convs, nn.Conv1d(12, 8, 1)))
    )


def strided_end():
    net = bottleneck(8, 16, 16)
    net.branch[6] = nn.Conv2d(16, 16, 1, stride=2, bias=False)
    net.down = nn.Conv2d(8, 16, 1, stride=2)
    return nn.Sequential(nn.Conv2d(3, 8, 1), net)


def without_constant():
    net = bottleneck(8, 16, 8)
    net.branch[7] = nn.Identity()
    return nn.Sequential(nn.Conv2d(3, 8, 1), net)


class Squeezing(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


def squeezing():
    body = [nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), Squeezing(16)]
    body += [nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)]
    return nn.Sequential(nn.Conv2d(3, 8, 1), ResidualReLU(nn.Sequential(*body)))


OTHERS = {
    "one dimension, biases": (conv1d_net, (3, 24), "matched-width"),
    "strided end": (strided_end, IMAGE, "matched-width"),
    "neither norm nor bias": (without_constant, IMAGE, "matched-width"),
    "squeeze-excite": (squeezing, IMAGE, "own-squeeze"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_forms_of_blocks(name):
    build, size, split = OTHERS[name]
    x = images(64, size=size)
    source = settled(build(), x).eval()
    model, _ = dynamize(source, 2, input_size=size)
    assert model[1].multi_path.split == split
    before = off_by(output(model, x), source(x))
    ((first, last),) = reconstruct(model, source, [x[:40], x[40:]]).values()
    assert last < 0.99 * first
    assert off_by(output(model, x), source(x)) < before


def test_a_norm_that_lets_nothing_through_does_no_harm():
    source = settled(bottlenecks(), images(32)).eval()
    nn.init.zeros_(source.b1.branch[7].weight)
    nn.init.zeros_(source.b1.branch[7].bias)
    model, _ = dynamize(source, 2, input_size=IMAGE)
    before = copy.deepcopy(model.b1.state_dict())
    errors = reconstruct(model, source, [images(32)])
    assert errors["b1"] == (0, 0)
    assert all(torch.equal(v, before[name]) for name, v in model.b1.state_dict().items())
    assert errors["b2"][1] < errors["b2"][0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_stays(dtype):
    x = images(32).to(dtype)
    source = settled(bottlenecks(), images(32)).eval().to(dtype)
    model, _ = dynamize(source, 2, input_size=IMAGE)
    types = {name: value.dtype for name, value in model.state_dict().items()}
    errors = reconstruct(model, source, [x])
    assert {name: value.dtype for name, value in model.state_dict().items()} == types
    assert all(after < before for before, after in errors.values())


# --- what it leaves alone ---------------------------------------------------------------------


@pytest.mark.parametrize("split", ["matched", "exact"])
def test_exact_blocks_stay_bit_for_bit(split):
    build = basic_net if split == "matched" else bottlenecks
    source = settled(build(), images(16)).eval()
    model, _ = dynamize(source, 2, split=split, input_size=IMAGE)
    before = copy.deepcopy(model.state_dict())
    assert reconstruct(model, source, [images(16)]) == {}
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())


def test_only_last_layers_and_means_change():
    source = settled(Net(basic(8, 8), bottleneck(8, 16, 16)), images(16)).eval()
    model, _ = dynamize(source, 2, input_size=IMAGE)
    states = [copy.deepcopy(net.state_dict()) for net in (source, model)]
    assert list(reconstruct(model, source, [images(16)])) == ["b2"]
    assert all(torch.equal(v, states[0][name]) for name, v in source.state_dict().items())
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, states[1][n])}
    names = ("6.weight", "7.running_mean")
    assert changed == {
        f"b2.multi_path.sub_blocks.{n}.branch.{name}" for n in (0, 1) for name in names
    }
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad_fn is None for parameter in model.parameters())


def test_calibration_keeps_what_reconstruction_made():
    x = images(64)
    source = settled(bottlenecks(), x).eval()
    model, _ = dynamize(source, 2, input_size=IMAGE)
    reconstruct(model, source, [x])
    evaluation = output(model, x)
    calibrate(model, [x])
    assert off_by(output(model, x), evaluation) <= 1e-5


def state(model):
    return (
        [(name, module.training) for name, module in model.named_modules()],
        [b.execution for b in model.modules() if isinstance(b, MultiPathBlock)],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    )


@pytest.mark.parametrize("fails", ["never", "loader", "model", "source"])
def test_modes_executions_hooks_and_gates_come_back(fails):
    source = settled(bottlenecks(), images(16))
    model, _ = dynamize(source, 2, input_size=IMAGE)
    model.b1.eval()
    model.b2.multi_path.execution = "masked"

    def fail(*_):
        raise OSError("the disk is gone")

    def loader():
        yield images(16)
        if fails == "loader":
            fail()

    if fails in ("model", "source"):
        {"model": model, "source": source}[fails].b2.register_forward_pre_hook(fail)
    before = state(model), state(source)
    tensors = copy.deepcopy(model.state_dict())
    random = torch.random.get_rng_state()
    if fails == "never":
        reconstruct(model, source, loader())
    else:
        with pytest.raises(OSError, match="disk"):
            reconstruct(model, source, loader())
        assert all(torch.equal(v, tensors[name]) for name, v in model.state_dict().items())
    assert (state(model), state(source)) == before
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert model.b1.multi_path.controller.chain.forcing is None


# --- what it takes ----------------------------------------------------------------------------


def test_batches_are_looked_at_as_asked():
    source = settled(bottlenecks(), images(60)).eval()
    first, _ = dynamize(source, 2, input_size=IMAGE)
    second = copy.deepcopy(first)
    seen = []

    def loader():
        for i in range(10):
            seen.append(i)
            yield images(20, seed=i), torch.zeros(20)

    reconstruct(first, source, loader(), batches=3)
    assert seen == [0, 1, 2]
    reconstruct(second, source, [torch.cat([images(20, seed=i) for i in range(3)])])
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_places_are_chosen_by_seed():
    source = settled(bottlenecks(), images(32)).eval()
    states = []
    for seed in (0, 0, 1):
        model, _ = dynamize(source, 2, input_size=IMAGE)
        reconstruct(model, source, [images(32)], positions=20, seed=seed)
        states.append(model.b1.multi_path.sub_blocks[0].branch.get_submodule("6").weight)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    few = _Places(20, 0).of(64)
    assert len(few) == len(few.unique()) == 20
    assert torch.equal(_Places(20, 0).of(7), torch.arange(7))


def converted():
    source = settled(bottlenecks(), images(4)).eval()
    return dynamize(source, 2, input_size=IMAGE).model, source


def test_models_must_be_converted():
    with pytest.raises(ArgumentError, match="dynamize"):
        reconstruct(bottlenecks(), bottlenecks(), [images(2)])


def other_sources():
    smaller_maps = bottlenecks()
    smaller_maps.stem = nn.Conv2d(3, 8, 3, 2, 1)
    unused = bottlenecks()
    unused.b1.forward = unused.b1.down.forward
    return {
        "converted": (converted()[0], "no layer like b1's branch.6"),
        "other width": (Net(bottleneck(8, 12, 16), bottleneck(16, 12, 16)), "no layer like b1's"),
        "other blocks": (basic_net(), "no layer like b1's"),
        "smaller maps": (smaller_maps, r"\(4, 64\) .* \(4, 16\)"),
        "unused": (unused, "b1 did not run"),
    }


@pytest.mark.parametrize("name", one_in(3, other_sources()))
def test_the_source_must_belong(name):
    source, message = other_sources()[name]
    model, _ = converted()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match=f"reconstruct.*{message}"):
        reconstruct(model, source, [images(4)])
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())


@pytest.mark.parametrize(("loader", "batches"), [([], 8), (iter(()), 8), ([images(2)], 0)])
def test_without_a_batch_it_refuses(loader, batches):
    with pytest.raises(ArgumentError, match=r"reconstruct.*no batch"):
        reconstruct(*converted(), loader, batches)


@pytest.mark.parametrize(
    "wrong", [{"ridge": 0}, {"ridge": float("nan")}, {"ridge": float("inf")}, {"positions": 0}]
)
def test_numbers_out_of_range(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        reconstruct(*converted(), [images(2)], **wrong)


# --- least squares ----------------------------------------------------------------------------


@pytest.mark.parametrize("free", [True, False])
def test_least_squares_agree_with_lstsq(free):
    x, y = images(1, size=(50, 4))[0].double(), images(1, 1, size=(50, 3))[0].double()
    weights, constant = torch.ones(4, 3), torch.ones(3)
    problem = LeastSquares(weights, constant, free=free)
    problem.add(x[:20], y[:20])
    problem.add(x[20:], y[20:])
    change = problem.solve(1e-12)
    columns = torch.cat([x, torch.ones(50, 1)], 1) if free else x
    wanted = y if free else y - 1
    expected = torch.linalg.lstsq(columns, wanted).solution
    torch.testing.assert_close(change.weights + 1, expected[:4])
    torch.testing.assert_close(change.constant + 1, expected[4] if free else torch.ones(3).double())
    assert change.before == pytest.approx(off_by(x @ torch.ones(4, 3).double() + 1, y))
    assert change.after == pytest.approx(off_by(columns @ expected + (not free), y))


def test_a_ridge_holds_the_weights():
    problem = LeastSquares(torch.ones(4, 3), torch.zeros(3), free=True)
    problem.add(images(1, size=(50, 4))[0], images(1, 1, size=(50, 3))[0])
    sizes = [problem.solve(ridge).weights.norm() for ridge in (1e-6, 1e-1, 10, 1e6)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-3
