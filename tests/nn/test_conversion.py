"""A converted model carries how it was converted, wherever it goes."""

import copy

import pytest
import torch
from nets import NETS
from torch import nn

from dmnn_convert import dynamize, freeze, record_paths
from dmnn_convert.nn import attach, conversion_of, conversion_within, detach


@pytest.fixture
def converted():
    return dynamize(NETS["option_a"].build(), 3, input_size=NETS["option_a"].size)


def test_a_model_a_wrapper_and_a_part(converted):
    model, table = converted
    wrapper = nn.Sequential(nn.Identity(), model)
    assert conversion_of(model).table is table
    assert conversion_of(model).config.N == 3
    assert conversion_of(wrapper) is None
    assert conversion_within(wrapper) == conversion_within(model) == conversion_of(model)
    part = next(child for child in model.children() if any(True for _ in child.children()))
    assert conversion_within(part) is None


def test_what_is_detached_is_gone_and_can_come_back(converted):
    model, table = converted
    twin = copy.deepcopy(model)
    detach(twin)
    detach(twin)
    assert conversion_of(twin) is None
    assert conversion_of(model).table == table
    with record_paths(twin) as paths:
        assert paths.table is None
    attach(twin, *conversion_of(model))
    assert conversion_of(twin) == conversion_of(model)


@pytest.mark.slow
def test_a_frozen_network_carries_none(converted):
    model = converted.model.eval()
    assert conversion_within(freeze(model, torch.ones(sum(converted.table.sizes)))) is None
