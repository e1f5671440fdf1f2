"""Groups of parameters: each in one group, norms and biases without decay."""

import torch
from small_nets import NETS
from torch import nn

from dmnn_convert import dynamize, gate_parameters, parameter_groups


def model_of():
    return dynamize(NETS["basic"](), 2, input_size=(3, 8, 8)).model


def test_every_parameter_is_in_one_group_and_biases_do_not_decay():
    model = nn.Sequential(model_of())
    groups = parameter_groups(model, weight_decay=0.1, lr=0.5, gate_lr=2.0, gate_weight_decay=0.2)
    held = [p for group in groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))
    gates = {id(p) for p in gate_parameters(model)}
    for group in groups:
        own = [id(p) in gates for p in group["params"]]
        assert len(set(own)) == 1
        assert group["lr"] == (2.0 if own[0] else 0.5)
        plain = [p.dim() <= 1 for p in group["params"]]
        assert len(set(plain)) == 1
        assert group["weight_decay"] == (0.0 if plain[0] else 0.2 if own[0] else 0.1)
    assert {id(p) for p in groups[-1]["params"]} <= gates


def test_frozen_parameters_are_left_out_and_rates_are_the_optimisers_own():
    model = model_of()
    for parameter in gate_parameters(model):
        parameter.requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    optimizer = torch.optim.AdamW(groups, lr=0.3)
    assert {group["lr"] for group in optimizer.param_groups} == {0.3}
    assert parameter_groups(nn.ReLU(), weight_decay=0.1) == []
