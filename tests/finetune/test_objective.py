"""The objective of a fine-tuning step, checked against values computed by hand."""

import math

import pytest
import torch
from finetune_data import NET

from dmnn_convert import dynamize, force_gates, record_paths, resource_loss
from dmnn_convert.categories import Categories
from dmnn_convert.finetune import Recipe
from dmnn_convert.finetune.objective import Objective
from dmnn_convert.finetune.optimisation import make_mixing
from dmnn_convert.finetune.schedule import GatePhase
from dmnn_convert.io import zoo

CLOSED, OPEN = GatePhase(False, 0.5, 1.0), GatePhase(True, 1.0, 1.0)


def objective_of(recipe, table, categories=None):
    return Objective(
        recipe,
        table,
        categories,
        smoothing=recipe.smoothing,
        alpha=recipe.alpha,
        temperature=recipe.distill_temperature,
    )


def step(recipe, phase=CLOSED, taught=None, categories=None):
    count = None if categories is None else categories.count
    model, table = dynamize(zoo.build(NET), 2, input_size=(3, 8, 8), num_categories=count)
    model.train()
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 3
    opened = force_gates(model, True) if phase.open else force_gates(model, 0.5, seed=1)
    with opened, record_paths(model) as paths:
        logits = model(images)
    losses = objective_of(recipe, table, categories)(logits, labels, paths, phase, taught)
    return model, table, paths, logits, labels, losses


def test_the_total_is_the_weighted_sum():
    recipe = Recipe(distill=0.25, resource=2.0, category=3.0)
    categories = Categories((0, 1, 1), ("a", "b"))
    *_, losses = step(recipe, taught=torch.randn(6, 3), categories=categories)
    total = 0.75 * losses.classification + 0.25 * losses.distillation + 2 * losses.resource
    total = total + 3 * losses.category
    assert losses.total.item() == pytest.approx(total.item())
    assert losses.category > 0


def test_distillation_is_nothing_from_a_teacher_that_agrees():
    recipe = Recipe(distill=1.0, distill_temperature=3.0)
    _, table, paths, logits, labels, _ = step(recipe)
    objective = objective_of(recipe, table)
    same = objective(logits, labels, paths, CLOSED, logits.detach()).distillation
    assert same.item() == pytest.approx(0, abs=1e-6)
    # KL between (3/4, 1/4, 0) and (1/4, 3/4, 0), of logits that the temperature divides.
    taught = torch.tensor([[math.log(3), 0.0, -1e9]]) * 3
    expected = 9 * (0.75 * math.log(3) - 0.25 * math.log(3))
    found = objective(taught[:, [1, 0, 2]], labels[:1], None, CLOSED, taught).distillation
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_labels_are_smoothed_once():
    """Also where mixup has made mixtures of them."""
    logits = torch.tensor([[2.0, 0.0, 0.0]])
    recipe = Recipe(smoothing=0.3, mixup=0.2)
    mixed = make_mixing(recipe, 3)(torch.zeros(2, 3, 8, 8), torch.tensor([0, 0]))[1]
    logs = logits.log_softmax(-1)[0]
    expected = -(0.8 * logs[0] + 0.1 * logs[1] + 0.1 * logs[2])
    for targets in (torch.tensor([0]), mixed[:1]):
        found = objective_of(recipe, None)(logits, targets, None, CLOSED).classification
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("rates", ["block", "network", "none"])
def test_which_execution_rates_are_held(rates):
    _, table, paths, _, _, losses = step(Recipe(rates=rates))
    z, f = paths.execution_rates(), paths.flops_ratio()
    expected = {
        "block": resource_loss(paths, table, 0.5),
        "network": (z.mean() - 0.5) ** 2 + (f - 0.5) ** 2,
        "none": (f - 0.5) ** 2,
    }[rates]
    assert losses.resource.item() == pytest.approx(expected.item(), abs=1e-6)


def test_open_gates_cost_nothing_and_leave_no_parameter_without_gradient():
    model, *_, losses = step(Recipe(), OPEN, categories=Categories((0, 1, 1), ("a", "b")))
    assert losses.resource == 0
    losses.total.backward()
    assert all(p.grad is not None for p in model.parameters())
