"""Levels: their paths, the training for all of them, and the norm statistics of each."""

import copy

import numpy as np
import pytest
import torch
from norms import draw_norms, normal, uniform
from small_nets import IMAGE, basic_net
from tiny_net import tiny
from torch import nn
from torch.utils.checkpoint import checkpoint

from dmnn_convert import (
    ArgumentError,
    at_level,
    calibrate,
    dynamize,
    estimate_levels,
    force_gates,
    freeze,
    gate_parameters,
    level_losses,
    level_path,
    level_statistics,
    load,
    record_paths,
    reestimate_norms,
    save,
)
from dmnn_convert.budget import step_paths
from dmnn_convert.budget.statistics import trained_levels
from dmnn_convert.nn import along_path


@pytest.fixture
def levels_net():
    torch.manual_seed(0)
    net = nn.Sequential(tiny(), nn.Identity())
    draw_norms(net, {"weight": uniform(0.5, 1.5), "bias": normal()})
    return dynamize(net, 4, split="exact", tail_norm="shared", input_size=(3, 8, 8)).model


def batch(count=6):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_level_is_the_first_sub_blocks_of_every_block():
    model, table = dynamize(basic_net(), 4, input_size=IMAGE)
    for level, count in ((0.25, 1), (0.5, 2), (1, 4)):
        for part in level_path(model, level).split(table.sizes):
            assert part.tolist() == [1.0] * count + [0.0] * (4 - count)


def test_levels_by_stage_follow_the_stages_of_the_table():
    model, table = dynamize(basic_net(), 2, input_size=IMAGE)
    stages = sorted(set(table.stages))
    path = level_path(model, tuple(0.5 if stage == 0 else 1.0 for stage in stages))
    for stage, part in zip(table.stages, path.split(table.sizes), strict=True):
        assert part.sum() == (1 if stage == 0 else 2)


@pytest.mark.parametrize(
    ("level", "said"),
    [
        (0, "above 0 and at most 1"),
        (1.5, "above 0 and at most 1"),
        (float("nan"), "above 0 and at most 1"),
        (True, "above 0 and at most 1"),
        (0.3, "Give 0.25 or 0.5, or convert with another N, such as N=10"),
        (0.1, "Give 0.25, or"),
        ((0.5, 1.0), "gives 2 levels, but the model has 1 stages"),
    ],
)
def test_levels_that_cannot_be_are_refused(levels_net, level, said):
    with pytest.raises(ArgumentError, match=said):
        level_path(levels_net, level)


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ((0.5, 0.25, 1), "rising"),
        ((0.5, 0.5, 1), "rising"),
        ((0.25, 0.5), "the last one 1"),
        ((1,), "two or more"),
    ],
)
def test_lists_of_levels_rise_to_one(levels_net, levels, said):
    with pytest.raises(ArgumentError, match=said):
        level_losses(levels_net, batch(), torch.arange(6) % 3, levels, step=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tail_norm", ["shared", "per-sub-block"])
def test_a_path_for_all_images_computes_no_more_and_gives_the_same(training, tail_norm):
    net = dynamize(tiny(), 4, split="exact", tail_norm=tail_norm, input_size=(3, 8, 8)).model
    net.train(training)
    path = torch.tensor([1.0, 1, 0, 1, 0, 0, 0, 0])
    other = copy.deepcopy(net)
    with force_gates(other, path), record_paths(other):  # a record asks the controllers
        expected = other(batch())
    calls = []
    for name, module in net.named_modules():
        if name.endswith(("sub_blocks.2", "controller")):
            module.register_forward_hook(lambda *_: calls.append(1))
    with along_path(net, path):
        torch.testing.assert_close(net(batch()), expected)
    assert calls == []


def test_training_for_levels_is_a_few_lines_and_reaches_every_parameter(levels_net):
    model = levels_net.train()
    labels = torch.arange(6) % 3
    before = {k: v.clone() for k, v in model.named_buffers()}
    losses = level_losses(model, batch(), labels, (0.25, 1.0), step=3)
    losses.total.backward()
    gates = set(gate_parameters(model))
    assert all((p.grad is None) == (p in gates) for p in model.parameters())
    torch.testing.assert_close(losses.total, losses.all_on + losses.lowest + losses.drawn)
    assert losses.lowest > 0
    # Lower paths leave the running statistics to the whole network.
    alone = copy.deepcopy(levels_net)
    alone.load_state_dict({**alone.state_dict(), **before})
    with force_gates(alone, True):
        alone(batch())
    for (name, ours), theirs in zip(model.named_buffers(), alone.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_lower_paths_learn_from_the_answers_alone(levels_net):
    """No gradient flows into what they learn from: the whole network's classifier gets that of
    the labels, and of the lower paths' own passes."""
    model = levels_net.train()
    losses = level_losses(model, batch(), torch.arange(6) % 3, step=0)
    losses.lowest.backward()
    last = [p for name, p in model.named_parameters() if ".sub_blocks.3." in name]
    assert last
    assert all(p.grad is None for p in last)


def test_what_a_step_draws_depends_on_seed_and_step(levels_net):
    levels = (0.25, 0.5, 0.75, 1.0)
    drawn = [step_paths(levels_net, levels, step, seed=7)[1].tolist() for step in range(30)]
    assert drawn == [step_paths(levels_net, levels, s, seed=7)[1].tolist() for s in range(30)]
    assert drawn != [step_paths(levels_net, levels, s, seed=8)[1].tolist() for s in range(30)]
    uniform = {tuple(path) for path in drawn[::3]}  # one level for the network, every third time
    assert uniform <= {tuple(level_path(levels_net, level).tolist()) for level in levels}
    assert len({tuple(path) for path in drawn}) > 6


def test_statistics_of_levels_are_those_of_their_path(levels_net):
    """One batch: the mean that every norm is given in training mode, but for the stem's."""
    plain = copy.deepcopy(levels_net).train()
    plain[0][1].eval()
    estimate_levels(levels_net, [batch()], (0.25, 0.5, 1.0))
    assert level_statistics(levels_net, 1.0) == {}
    kept = level_statistics(levels_net, 0.5)
    seen = {}
    for name in kept:
        plain.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0]})
        )
    with along_path(plain, level_path(plain, 0.5)), torch.no_grad():
        plain(batch())
    assert len(seen) == len(kept) == 6
    for name, x in seen.items():
        values = x.transpose(0, 1).flatten(1)
        torch.testing.assert_close(kept[name].mean, values.mean(1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(kept[name].var, values.var(1), atol=1e-5, rtol=1e-5)


def test_a_level_runs_with_its_statistics_and_keeps_them(levels_net, tmp_path):
    model = levels_net.eval()
    estimate_levels(model, [batch(), batch() + 1], (0.25, 0.5, 1.0))
    with torch.no_grad():
        whole = model(batch())
        with at_level(model, 0.5):
            half = model(batch())
        assert torch.equal(model(batch()), whole)
        assert not torch.allclose(half, whole)
        with force_gates(model, level_path(model, 0.5)):
            assert not torch.allclose(half, model(batch()))
        copied = copy.deepcopy(model)
        with at_level(copied, 0.5):
            assert torch.equal(copied(batch()), half)
        save(model, tmp_path)
        loaded, _ = load(tmp_path, model=nn.Sequential(tiny(), nn.Identity()))
        with at_level(loaded.eval(), 0.5):
            assert torch.equal(loaded(batch()), half)


def test_a_plain_state_dict_carries_the_statistics(levels_net):
    model, fresh = levels_net.eval(), copy.deepcopy(levels_net).eval()
    without = copy.deepcopy(model.state_dict())
    estimate_levels(model, [batch()], (0.25, 0.5, 1.0))
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad(), at_level(model, 0.5), at_level(fresh, 0.5):
        assert torch.equal(fresh(batch()), model(batch()))
    estimate_levels(model, [batch() + 1], (0.25, 0.5))  # in memory of its own
    for name, value in fresh.state_dict().items():
        assert ".levels." not in name or value.data_ptr() != model.state_dict()[name].data_ptr()
    fresh.load_state_dict(without)  # whose levels nobody estimated
    with pytest.raises(ArgumentError, match="keeps no norm statistics"), at_level(fresh, 0.5):
        pass


def test_a_level_without_statistics_is_refused(levels_net):
    with pytest.raises(ArgumentError, match="estimate_levels"), at_level(levels_net, 0.5):
        pass
    estimate_levels(levels_net, [batch()], (0.25, 1.0))
    with pytest.raises(ArgumentError, match="keeps no norm statistics"), at_level(levels_net, 0.5):
        pass
    outer = nn.Sequential(levels_net)
    with pytest.raises(ArgumentError, match="not one around"), at_level(outer, 0.25):
        pass


def test_statistics_need_images(levels_net):
    with pytest.raises(ArgumentError, match="gave no batch"):
        estimate_levels(levels_net, [], (0.5, 1.0))


def test_what_takes_the_models_own_statistics_stops_inside_a_level(levels_net, tmp_path):
    estimate_levels(levels_net, [batch()], [0.5])
    with at_level(levels_net, 0.5):
        for call in (lambda: freeze(levels_net, 1.0), lambda: save(levels_net, tmp_path / "net")):
            with pytest.raises(ArgumentError, match="inside at_level"):
                call()
    freeze(levels_net, 1.0)
    assert not (tmp_path / "net").exists()


def test_nothing_changes_the_statistics_that_a_level_lends(levels_net):
    model = levels_net.eval()
    estimate_levels(model, [batch()], (0.5, 1.0))
    before = {name: kept.clone() for name, kept in model.state_dict().items()}
    calls = {
        "reestimate_norms": lambda: reestimate_norms(model, [batch()]),
        "calibrate": lambda: calibrate(model, [batch()]),
        "estimate_levels": lambda: estimate_levels(model, [batch()], (0.25,)),
        "load_state_dict": lambda: model.load_state_dict(before),
    }
    with at_level(model, 0.5):
        for name, call in calls.items():
            with pytest.raises(ArgumentError, match=f"{name}: the model is inside at_level"):
                call()
        with pytest.raises(ArgumentError, match="a copy that was made there"):
            freeze(copy.deepcopy(model), 1.0)
        model.train()(batch() + 1)  # moves what was lent, which is dropped
    after = model.eval().state_dict()
    lent = [f"{norm}.running_mean" for norm in level_statistics(model, 0.5)]
    lent += [name for name in before if ".levels." in name]
    assert all(torch.equal(before[name], after[name]) for name in lent)
    model.load_state_dict(before)


def test_a_state_for_another_number_of_sub_blocks_leaves_no_statistics(levels_net):
    estimate_levels(levels_net, [batch()], (0.5, 1.0))
    other = dynamize(nn.Sequential(tiny(), nn.Identity()), 2, input_size=(3, 8, 8)).model
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(levels_net.state_dict())
    with pytest.raises(ArgumentError, match="keeps no norm statistics"), at_level(other, 0.5):
        pass


def test_paths_with_other_sub_blocks_than_the_first_have_names_of_their_own(levels_net):
    total = len(level_path(levels_net, 1.0))
    first, second = (torch.tensor(row * (total // 4)) for row in ([1.0, 0, 1, 0], [1.0, 0, 0, 1]))
    estimate_levels(levels_net, [batch()], [first, second, 1.0])
    assert len(trained_levels(levels_net)) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_statistics_have_the_models_precision(levels_net, dtype):
    model = levels_net.to(dtype).eval()
    estimate_levels(model, [batch().to(dtype)], [0.5])
    with torch.no_grad():
        frozen = freeze(model, 0.5)(batch().to(dtype))
        with at_level(model, 0.5):
            torch.testing.assert_close(model(batch().to(dtype)), frozen, rtol=0.05, atol=0.05)
    assert frozen.dtype is dtype


def test_a_network_around_the_model_has_other_names(levels_net):
    estimate_levels(levels_net, [batch()], [0.5])
    with pytest.raises(ArgumentError, match="give the model that estimate_levels was given"):
        freeze(nn.Sequential(levels_net), 0.5)


class OwnNorm(nn.Module):
    """A norm as people write them: it follows its images, and replaces its buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * x.detach().mean((0, 2, 3))
        return x - self.mean[:, None, None]


@pytest.mark.parametrize("make", [OwnNorm, lambda: nn.InstanceNorm2d(8, track_running_stats=True)])
def test_lower_paths_leave_every_running_statistic_alone(make):
    torch.manual_seed(0)
    net = tiny()
    net.insert(5, make())
    model = dynamize(net, 4, split="exact", tail_norm="shared", input_size=(3, 8, 8)).model.train()
    alone = copy.deepcopy(model)
    level_losses(model, batch(), torch.zeros(6).long(), step=0).total.backward()
    with force_gates(alone, True):
        alone(batch())
    for found, expected in zip(model.buffers(), alone.buffers(), strict=True):
        assert found.equal(expected)


@pytest.mark.parametrize("level", [None, "half", {0.5}])
def test_what_is_no_level_is_told(levels_net, level):
    with pytest.raises(ArgumentError, match="give a share in"):
        level_path(levels_net, level)
    assert level_path(levels_net, np.float32(0.5)).equal(level_path(levels_net, 0.5))


class Checkpointed(nn.Module):
    """Stages that end in a batch norm, each repeated in the backward pass if asked."""

    def __init__(self, repeats):
        super().__init__()
        self.repeats, self.net = repeats, tiny()
        self.ends = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])

    def forward(self, x):
        x = self.net[:3](x)
        for block, end in zip(self.net[3:5], self.ends, strict=True):
            stage = nn.Sequential(block, end)
            x = checkpoint(stage, x, use_reentrant=False) if self.repeats else stage(x)
        return self.net[5:](x)


def test_checkpointing_leaves_the_gradients_of_levels_alone():
    gradients = []
    for repeats in (False, True):
        torch.manual_seed(0)
        net = Checkpointed(repeats)
        model, _ = dynamize(net, 4, split="exact", tail_norm="shared", input_size=(3, 8, 8))
        labels = torch.zeros(6).long()
        level_losses(model.double().train(), batch().double(), labels, step=1).total.backward()
        named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        gradients.append(named)
    torch.testing.assert_close(*gradients)
