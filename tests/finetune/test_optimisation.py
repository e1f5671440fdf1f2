"""Optimisers and learning rates as a recipe asks for them."""

import math

import numpy
import pytest
import torch
from finetune_data import NET

from dmnn_convert import ArgumentError, dynamize, gate_parameters
from dmnn_convert.finetune import Recipe, read_recipe
from dmnn_convert.finetune.optimisation import (
    amp_dtype,
    make_mixing,
    make_optimizer,
    make_schedule,
    slow_amp,
)
from dmnn_convert.finetune.option_groups import OptimisationOptions
from dmnn_convert.io import zoo


def optimizer_of(recipe):
    model, _ = dynamize(zoo.build(NET), 2, input_size=(3, 8, 8))
    return model, make_optimizer(recipe, model)


def rates(recipe, epochs, steps=10):
    _, optimizer = optimizer_of(recipe)
    schedule = make_schedule(recipe, optimizer, steps)
    found = []
    for epoch in epochs:
        schedule.step_update(int(epoch * steps))
        found.append([group["lr"] for group in optimizer.param_groups])
    return found


def test_controllers_have_a_group_of_their_own():
    recipe = OptimisationOptions(lr=0.1, gate_lr=0.5, weight_decay=1e-3, gate_weight_decay=1e-5)
    model, optimizer = optimizer_of(recipe)
    weights, plain, gates, gate_biases = optimizer.param_groups
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.1, 0.5, 0.5]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [1e-3, 0, 1e-5, 0]
    both = [*gates["params"], *gate_biases["params"]]
    assert {id(p) for p in both} == {id(p) for p in gate_parameters(model)}
    assert all(p.dim() > 1 for group in (weights, gates) for p in group["params"])
    assert all(p.dim() <= 1 for group in (plain, gate_biases) for p in group["params"])
    held = sum(len(g["params"]) for g in optimizer.param_groups)
    assert held == len(list(model.parameters()))


@pytest.mark.parametrize(("opt", "nesterov"), [("sgd", True), ("momentum", False)])
def test_the_two_sgds(opt, nesterov):
    _, optimizer = optimizer_of(OptimisationOptions(opt=opt, momentum=0.8))
    assert isinstance(optimizer, torch.optim.SGD)
    assert {(g["nesterov"], g["momentum"]) for g in optimizer.param_groups} == {(nesterov, 0.8)}


def test_the_learning_rate_falls_along_half_a_cosine():
    recipe = OptimisationOptions(epochs=10, lr=0.1, gate_lr=0.2, warmup_epochs=0.0)
    for epoch, (rate, _, gate_rate) in zip((0, 2.5, 5), rates(recipe, (0, 2.5, 5)), strict=True):
        share = (1 + math.cos(math.pi * epoch / 10)) / 2
        assert (rate, gate_rate) == pytest.approx((0.1 * share, 0.2 * share))


def test_the_learning_rate_rises_first():
    found = rates(OptimisationOptions(epochs=10, lr=0.1, warmup_epochs=2.0), (0, 1, 1.9))
    assert [row[0] for row in found] == pytest.approx([0.001, 0.0505, 0.09505])


def test_the_papers_steps():
    # timm lowers the rate with the last step before a milestone.
    recipe = Recipe().with_changes(read_recipe("cifar100"))
    assert [row[0] for row in rates(recipe, (0, 99.8, 100, 149.8, 150, 199))] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


@pytest.mark.parametrize(
    ("sched", "words"),
    [
        ("none", "constant rate"),
        ("plateau", "depends on results"),
        ("linear", "no such schedule"),
        ("rsqrt", "no such schedule for this recipe"),
    ],
)
def test_schedules_that_cannot_be_are_refused(sched, words):
    _, optimizer = optimizer_of(OptimisationOptions())
    with pytest.raises(ArgumentError, match=words):
        make_schedule(OptimisationOptions(sched=sched), optimizer, 10)


def test_steps_without_milestones_are_a_constant_rate():
    recipe = OptimisationOptions(sched="multistep", epochs=10, lr=0.1, warmup_epochs=0.0)
    assert [row[0] for row in rates(recipe, (0, 5, 9.9))] == [0.1, 0.1, 0.1]


@pytest.mark.parametrize("options", [{"mixup": 1.0}, {"cutmix": 1.0}])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_images_but_an_odd_one_are_mixed(options, count):
    numpy.random.seed(0)  # timm draws from it; a box may be empty
    images = torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()
    mixing = make_mixing(OptimisationOptions(**options), 6)
    mixed, targets = mixing(images.clone(), torch.arange(count))
    even = count // 2 * 2
    assert mixed.shape == images.shape
    assert all(not torch.equal(mixed[i], images[i]) for i in range(even))
    assert torch.equal(mixed[even:], images[even:])
    assert targets.shape == (count, 6)
    assert torch.allclose(targets.sum(1), torch.ones(count))
    assert all(targets[i, i] < 1 for i in range(even))
    assert all(targets[i, i] == 1 for i in range(even, count))


def test_mixed_precision_needs_a_device_that_has_it():
    assert amp_dtype(OptimisationOptions(amp="bf16"), torch.device("cpu")) is torch.bfloat16
    assert amp_dtype(OptimisationOptions(), torch.device("meta")) is None
    with pytest.raises(ArgumentError, match="meta has no mixed precision"):
        amp_dtype(OptimisationOptions(amp="bf16"), torch.device("meta"))


@pytest.mark.parametrize(
    ("capability", "amp", "device", "slow"),
    [
        ("AVX2", "bf16", "cpu", True),
        ("AVX512", "bf16", "cpu", False),
        ("AVX2", None, "cpu", False),
        ("AVX2", "bf16", "cuda", False),
    ],
)
def test_emulated_precision_is_told_of(monkeypatch, capability, amp, device, slow):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    said = slow_amp(OptimisationOptions(amp=amp), torch.device(device))
    assert (said is not None and "no bf16 arithmetic" in said) == slow
