"""The idioms in which blocks are written by hand: as many convert as a human counts."""

import copy
import re

import pytest
import torch
from idioms import IDIOMS, build
from nets import images, off_by
from quick import one_in

from dmnn_convert import dynamize, find_blocks, force_gates, gate_parameters, set_execution
from dmnn_convert.nn import multi_path_blocks

NOT_YET = ("another way in training", "no batch")
"""What stays dense, with a reason."""


@pytest.fixture(scope="module", params=one_in(3, [name for name in IDIOMS if name not in NOT_YET]))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def converted(name):
    """Return source and converted model; nobody changes them."""
    source = build(name)
    return source, dynamize(source, split="exact", input_size=IDIOMS[name].size).model


def test_every_block_that_a_human_counts_is_converted(name, converted):
    assert len(multi_path_blocks(converted[1])) == IDIOMS[name].blocks


def test_the_function_is_kept_also_in_a_second_call(name, converted):
    source, model = converted
    for seed in (0, 1):
        x = images(source, IDIOMS[name].size, batch=3, seed=seed)
        with torch.no_grad(), force_gates(model, True):
            assert off_by(model(x), source(x)) <= 1e-5


def test_all_parameters_get_a_gradient_that_the_source_gives_one(name, converted):
    source, model = map(copy.deepcopy, converted)
    set_execution(model, "masked")
    x = images(source, IDIOMS[name].size, batch=3)
    for each in (source, model):
        each.train()
        torch.manual_seed(0)
        output = each(x)
        output.square().sum().backward()
    lacking = {n for n, p in source.named_parameters() if p.grad is None}
    gates = {id(p) for p in gate_parameters(model)}
    for path, parameter in model.named_parameters():
        if id(parameter) not in gates and not any(path.endswith(n) for n in lacking):
            assert parameter.grad is not None, path


def test_reasons_tell_what_is_in_the_way_of_the_branch():
    """It is not "read elsewhere": the block's own first layer reads its input."""
    reasons = [b.reason for b in find_blocks(build("nn.TransformerEncoder"), (3, 12, 12))]
    told = r"self-attention, whose heads are not split \(idioms.py:\d+\)"
    assert all(re.fullmatch(told, reason) for reason in reasons[::2])
