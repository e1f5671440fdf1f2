"""The schedule of gates in loops of the user's own; that of a recipe is the same."""

import pytest
import torch
from small_nets import NETS, images

from dmnn_convert import (
    ArgumentError,
    DMNNLoss,
    GatePhase,
    GateSchedule,
    dynamize,
    record_paths,
)
from dmnn_convert.finetune import Recipe
from dmnn_convert.finetune.schedule import gate_phase
from dmnn_convert.nn import controllers


def test_a_schedule_by_hand():
    schedule = GateSchedule(0.5, 10, start=0.9, open_epochs=2, tau=4.0, tau_end=1.0)
    assert schedule.at(0) == GatePhase(True, 0.9, 4.0)
    assert schedule.at(4) == (False, pytest.approx(0.7), pytest.approx(4 * 0.25**0.4))
    assert schedule.at(6) == (False, pytest.approx(0.5), pytest.approx(4 * 0.25**0.6))
    assert schedule.at(99) == (False, pytest.approx(0.5), pytest.approx(1.0))
    cosine = GateSchedule(0.5, 10, anneal="cosine", anneal_epochs=4)
    assert cosine.at(1).target == pytest.approx(0.9 - 0.4 * (1 - 2**-0.5) / 2)
    assert GateSchedule(0.5, 10, anneal="none").at(0).target == 0.5
    assert GateSchedule(0.95, 10).at(0).target == 0.95  # it never rises


def test_a_recipe_has_the_same():
    recipe = Recipe(target=0.4, anneal_from=0.8, open_epochs=1.0, tau_end=0.5, anneal="cosine")
    schedule = GateSchedule(0.4, 20, start=0.8, open_epochs=1.0, tau_end=0.5, anneal="cosine")
    for epoch in (0.0, 0.5, 3.25, 11.0, 20.0):
        assert gate_phase(recipe, epoch, 20) == schedule.at(epoch)


def test_a_step_sets_temperature_and_target_and_opens_the_gates():
    model, table = dynamize(NETS["basic"](), 2, input_size=(3, 8, 8))
    loss = DMNNLoss(table, target=0.5)
    schedule = GateSchedule(0.5, 10, open_epochs=1, tau=2.0, tau_end=0.5)
    torch.manual_seed(0)
    for epoch, everything in ((0.5, True), (6.0, False)):
        with schedule.step(model, loss, epoch) as phase, record_paths(model) as paths:
            model(images(16))
        assert phase == schedule.at(epoch)
        assert loss.target == phase.target
        assert {controller.tau for controller in controllers(model)} == {phase.tau}
        assert bool(paths.gates.all()) == everything


@pytest.mark.parametrize(
    "values",
    [
        {"target": 0.0},
        {"target": 1.5},
        {"start": 0.0},
        {"epochs": 0},
        {"open_epochs": 10},
        {"anneal": "steep"},
        {"tau": 0.0},
        {"tau_end": -1.0},
    ],
)
def test_values_out_of_range(values):
    with pytest.raises(ArgumentError, match="GateSchedule"):
        GateSchedule(**{"target": 0.5, "epochs": 10, **values})
