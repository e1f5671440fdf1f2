"""Norm statistics are re-estimated under the learned gates, over the images that count."""

import copy

import pytest
import torch
from helpers import assert_statistics, statistics
from small_nets import IMAGE, Net, basic, basic_net, images, seasoned
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dmnn_convert import (
    ArgumentError,
    GateConfig,
    GateController,
    MultiPathBlock,
    dynamize,
    force_gates,
    record_paths,
    reestimate_norms,
)

GATES = torch.tensor([[1, 0, 1, 1], [1, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]]).float()


def converted():
    return dynamize(seasoned(basic_net()), 2, input_size=IMAGE).model


def first_layers(model):
    """The first block's sub-blocks: convolution and norm."""
    return [
        (s.branch.get_submodule("0"), s.branch.get_submodule("1"))
        for s in model.b1.multi_path.sub_blocks
    ]


def test_by_default_all_images_count_as_in_training():
    model, x = converted(), images(4)
    with force_gates(model, GATES):
        reestimate_norms(model, [x])
    with torch.no_grad():
        for conv, norm in first_layers(model):
            assert_statistics(norm, conv(model.stem(x)))


def test_images_that_run_count_alone_if_asked():
    model, x = converted(), images(4)
    (conv, norm), (_, never) = first_layers(model)
    before = copy.deepcopy(never.state_dict())
    with force_gates(model, GATES):
        reestimate_norms(model, [x], count="running")
    with torch.no_grad():
        assert_statistics(norm, conv(model.stem(x))[GATES[:, 0] > 0])
    assert all(torch.equal(v, before[name]) for name, v in never.state_dict().items())


def test_later_norms_see_what_gates_and_batch_statistics_make():
    model, x = converted(), images(4)
    with force_gates(model, GATES):
        reestimate_norms(model, [x], count="running")
    with torch.no_grad():
        # One batch: the new running statistics are the batch's own but for n / (n − 1).
        values = model.stem(x)
        branch = model.b1.multi_path.sub_blocks[0].branch
        on = GATES[:, 0] > 0
        y = values[on]
        for layer in branch.children():
            batch_norm = isinstance(layer, nn.BatchNorm2d)
            y = by_batch(layer, y) if batch_norm else layer(y)
        after = values.clone()
        after[on] += y
        after = torch.relu(after)
        conv, norm = (model.b2.multi_path.sub_blocks[0].branch.get_submodule(i) for i in "01")
        assert_statistics(norm, conv(after)[GATES[:, 2] > 0])
        assert_statistics(model.b2.down[1], model.b2.down[0](after))


def by_batch(norm, x):
    return nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, True, 0, norm.eps)


def test_the_controllers_decide_as_in_evaluation():
    model = converted().train()
    shut = model.b1.multi_path.controller.w3.bias
    with torch.no_grad():
        shut.copy_(torch.tensor([1.0, 0.9, 0.0, 0.1]))  # off and on, by a hair
    before = copy.deepcopy(first_layers(model)[0][1].state_dict())
    with record_paths(model) as paths:
        reestimate_norms(model, [images(16)], count="running")
    assert (paths.gates[:, :2] == torch.tensor([0.0, 1.0])).all()
    after = first_layers(model)[0][1].state_dict()
    assert all(torch.equal(v, before[name]) for name, v in after.items())


def test_batches_count_by_their_images():
    x = images(20)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), basic(8, 8))
    model, _ = dynamize(net, 2, input_size=IMAGE)
    reestimate_norms(model, [x[:3], (x[3:], torch.zeros(17))])
    assert_statistics(model[1], net[0](x).detach())


def test_one_batch_gives_what_update_bn_gives():
    net = Net(basic(8, 8), nn.Identity())
    net.fc = nn.Linear(8, 5)
    model, _ = dynamize(seasoned(net), 2, input_size=IMAGE)
    other = copy.deepcopy(model).train()
    with force_gates(other, True):
        torch.optim.swa_utils.update_bn([images(8)], other)
    with force_gates(model, True):
        reestimate_norms(model, [images(8)])
    for name, value in model.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_one_value_a_channel_is_no_error():
    net = nn.Sequential(nn.Conv2d(3, 8, 8), basic(8, 8))
    model, _ = dynamize(seasoned(net), 2, input_size=IMAGE)
    before = copy.deepcopy(model[1].multi_path.sub_blocks[0].state_dict())
    gates = torch.tensor([[1, 1], [0, 1], [0, 1]]).float()
    with force_gates(model, gates):
        reestimate_norms(model, [images(3)], count="running")
    after = model[1].multi_path.sub_blocks[0].state_dict()
    assert all(torch.equal(v, before[name]) for name, v in after.items())


def test_only_statistics_change():
    model = converted()
    before = copy.deepcopy(model.state_dict())
    reestimate_norms(model, [images(8)])
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {n for n in before if n.endswith(("running_mean", "running_var"))}


def state(model):
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    return (
        [(name, module.training) for name, module in model.named_modules()],
        [b.execution for b in model.modules() if isinstance(b, MultiPathBlock)],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        [(m.momentum, m.track_running_stats, int(m.num_batches_tracked)) for m in norms],
    )


@pytest.mark.parametrize("fails", [False, True])
def test_all_else_comes_back(fails):
    model = converted().train()
    model.b1.eval()
    model.b2.multi_path.execution = "masked"
    model.b2.down[1].momentum = None
    before, tensors = state(model), copy.deepcopy(model.state_dict())

    def loader():
        yield images(4)
        if fails:
            raise OSError("the disk is gone")

    if fails:
        with pytest.raises(OSError, match="disk"):
            reestimate_norms(model, loader())
        assert all(torch.equal(v, tensors[name]) for name, v in model.state_dict().items())
    else:
        reestimate_norms(model, loader())
    assert state(model) == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("loader", "batches"), [([], 8), (iter(()), 8), ([images(2)], 0)])
def test_without_a_batch_it_refuses(loader, batches):
    with pytest.raises(ArgumentError, match=r"reestimate_norms.*no batch"):
        reestimate_norms(converted(), loader, batches)


def test_other_arguments_it_refuses():
    with pytest.raises(ArgumentError, match="dynamize"):
        reestimate_norms(basic_net(), [images(2)])
    with pytest.raises(ArgumentError, match=r"count='some'.*'all', 'running'"):
        reestimate_norms(converted(), [images(2)], count="some")


def test_the_controllers_own_norms_are_estimated_too():
    gate = GateConfig(spread=3.0, normalized=True)
    model = dynamize(seasoned(basic_net()), 2, input_size=IMAGE, gate=gate).model
    x = images(64)
    reestimate_norms(model, [x])
    controller = next(m for m in model.modules() if isinstance(m, GateController))
    pooled = []
    hook = controller.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    with torch.no_grad():
        model.eval()(x)
    hook.remove()
    mean, variance = statistics(pooled[0].mean((2, 3)))
    torch.testing.assert_close(controller.norm.running_mean.double(), mean, rtol=0.05, atol=0.01)
    assert (controller.margin_norm.running_var != 1).all()
    assert (controller.norm.running_var.double() / variance).log().abs().max() < 1
