"""Calibration keeps the function in evaluation and brings training mode to it."""

import copy

import pytest
import torch
from quick import slow_unless
from small_nets import IMAGE, NETS, basic_net, images, settled
from torch import nn

from dmnn_convert import (
    ArgumentError,
    MultiPathBlock,
    calibrate,
    dynamize,
    force_gates,
    record_paths,
    set_execution,
)

CASES = [("basic", "matched"), ("basic", "exact"), ("inverted", "matched"), ("bottleneck", "exact")]


def output(net, x, training, gates=None):
    net = copy.deepcopy(net).train(training)
    with torch.no_grad():
        if gates is None:
            return net(x)
        with force_gates(net, gates):
            return net(x)


def off_by(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("kind", "split"), CASES)
@pytest.mark.parametrize("N", slow_unless((3).__eq__, [2, 3]))
def test_evaluation_stays_and_training_comes_nearer(kind, split, N):
    x = images(64)
    source = settled(NETS[kind](), x)
    model, _ = dynamize(source, N, split=split, input_size=IMAGE)
    in_training = output(source, x, training=True)
    before = off_by(output(model, x, True, True), in_training)
    evaluation = output(model, x, False, True)
    mixed = output(model, x, False, 0.5)
    calibrate(model, [x])
    assert off_by(output(model, x, False, True), evaluation) <= 1e-5
    assert off_by(output(model, x, False, 0.5), mixed) <= 1e-5
    assert off_by(output(model, x, True, True), in_training) < before / 20
    assert before > 0.05


def test_statistics_are_each_sub_blocks_own():
    x = images(64)
    model, _ = dynamize(settled(basic_net(), x), 2, input_size=IMAGE)
    calibrate(model, [x])
    seen = {}
    for sub_block in model.b1.multi_path.sub_blocks:
        norm = sub_block.branch.get_submodule("4")
        norm.register_forward_pre_hook(lambda m, inputs: seen.update({m: inputs[0]}))
    set_execution(model.eval(), "masked")
    with torch.no_grad():
        model(x)
    assert len(seen) == 2
    for norm, value in seen.items():
        torch.testing.assert_close(norm.running_mean, value.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        variance = value.var((0, 2, 3), correction=0)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-6)


def test_several_batches_count_as_one():
    x = images(60)
    model, _ = dynamize(settled(basic_net(), x), 2, input_size=IMAGE)
    states = []
    for batches in ([x], [x[:40], x[40:]], [(x[:20], torch.zeros(20)), [x[20:], None]]):
        copied = copy.deepcopy(model)
        calibrate(copied, batches)
        states.append(copied.state_dict())
    for state in states[1:]:
        for name, value in state.items():
            torch.testing.assert_close(value, states[0][name], rtol=1e-4, atol=1e-5)


def test_what_the_controllers_would_decide_does_not_matter():
    x = images(32)
    model, _ = dynamize(settled(basic_net(), x), 2, input_size=IMAGE)
    shut = copy.deepcopy(model)
    nn.init.constant_(shut.b1.multi_path.controller.w3.bias, 0)
    calibrate(model, [x])
    calibrate(shut, [x])
    got, expected = shut.b2.state_dict(), model.b2.state_dict()
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_looks_at_no_more_batches_than_asked():
    seen = []

    def loader():
        for i in range(10):
            seen.append(i)
            yield images(4, seed=i)

    model, _ = dynamize(basic_net(), 2, input_size=IMAGE)
    calibrate(model, loader(), batches=3)
    assert seen == [0, 1, 2]


def state(model):
    return (
        [(name, module.training) for name, module in model.named_modules()],
        [b.execution for b in model.modules() if isinstance(b, MultiPathBlock)],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    )


@pytest.mark.parametrize("fails", [False, True])
def test_modes_executions_hooks_and_gates_come_back(fails):
    model, _ = dynamize(basic_net(), 2, input_size=IMAGE)
    model.train()
    model.b1.eval()
    model.b2.multi_path.execution = "masked"
    calls = []
    model.stem.register_forward_hook(lambda *_: calls.append(1))
    before, random = state(model), torch.random.get_rng_state()

    def loader():
        yield images(4)
        if fails:
            raise OSError("the disk is gone")

    if fails:
        with pytest.raises(OSError, match="disk"):
            calibrate(model, loader())
    else:
        calibrate(model, loader())
    assert state(model) == before
    assert calls == [1]
    assert torch.equal(torch.random.get_rng_state(), random)
    nn.init.constant_(model.b1.multi_path.controller.w3.bias, 0)
    with record_paths(model.eval()) as paths:
        model(images(2))
    assert not paths.gates[:, :2].any()


def test_only_tail_norms_change():
    model, _ = dynamize(settled(basic_net(), images(32)), 2, input_size=IMAGE)
    before = copy.deepcopy(model.state_dict())
    calibrate(model, [images(32)])
    changed = {name for name, v in model.state_dict().items() if not torch.equal(v, before[name])}
    names = ("weight", "bias", "running_mean", "running_var")
    tails = {
        f"b{b}.multi_path.sub_blocks.{n}.branch.4.{name}"
        for b in (1, 2)
        for n in (0, 1)
        for name in names
    }
    assert changed == tails


@pytest.mark.parametrize(("loader", "batches"), [([], 8), (iter(()), 8), ([images(2)], 0)])
def test_without_a_batch_it_refuses_and_changes_nothing(loader, batches):
    model, _ = dynamize(basic_net(), 2, input_size=IMAGE)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match=r"calibrate.*no batch"):
        calibrate(model, loader, batches)
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    assert model.training


def test_models_must_be_converted():
    with pytest.raises(ArgumentError, match="dynamize"):
        calibrate(basic_net(), [images(2)])
