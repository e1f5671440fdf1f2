"""Non-finite losses and weights end a run, with an error that says where they were."""

import pytest
import torch
from torch import nn

from dmnn_convert.errors import TrainingError
from dmnn_convert.finetune.finite import FiniteLoss, check_weights

CPU = torch.device("cpu")


def test_on_the_cpu_the_step_itself_stops():
    watched = FiniteLoss(CPU)
    watched.see(torch.tensor(1.0), 1, 3)
    with pytest.raises(TrainingError, match=r"loss is nan at step 4 of epoch 2.*--clip-grad"):
        watched.see(torch.tensor(float("nan")), 1, 4)


@pytest.mark.parametrize("asked", ["by the number of steps", "by a check"])
def test_a_later_look_still_names_the_first_step(asked):
    watched = FiniteLoss(CPU)
    watched.every = 20
    losses = [1.0, 2.0, float("inf"), float("nan"), 1.0]
    for step, loss in enumerate(losses, 14):
        watched.see(torch.tensor(loss), 0, step)
    with pytest.raises(TrainingError, match="loss is inf at step 16 of epoch 1"):
        if asked == "by a check":
            watched.check()
        else:
            watched.see(torch.tensor(1.0), 0, 19)
            watched.see(torch.tensor(1.0), 0, 20)


def test_nothing_seen_is_nothing_wrong():
    watched = FiniteLoss(CPU)
    watched.check()
    assert watched.first is None


def test_weights_are_named_and_masks_may_be_infinite():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("mask", torch.tensor(-torch.inf))
    check_weights(model, "now")
    with torch.no_grad():
        model[0].bias[1] = torch.inf
        model[1].running_mean[0] = torch.nan
    with pytest.raises(TrainingError) as error:
        check_weights(model, "after step 3 of epoch 1")
    assert str(error.value).startswith(
        "0.bias, 1.running_mean: no longer finite after step 3 of epoch 1; what was saved before "
    )


def test_infinite_statistics_of_a_norm_are_named():
    model = nn.Sequential(nn.BatchNorm1d(2))
    model[0].running_var[1] = torch.inf
    with pytest.raises(TrainingError, match=r"^0\.running_var: no longer finite now"):
        check_weights(model, "now")
