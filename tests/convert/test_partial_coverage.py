"""The line that says how much of a model a conversion covers."""

import copy
import logging
import pickle
import re

import pytest
import torch
from nets import Residual
from torch import nn

from dmnn_convert import ConversionError, dynamize, find_blocks, freeze
from dmnn_convert.convert import in_part, left_dense
from dmnn_convert.report import ConversionReport


class ByBatch(nn.Module):
    """A block whose hidden channels depend on the other images."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)

    def forward(self, x):
        y = self.a(x)
        return x + self.b(y * y.mean(0, keepdim=True))


def plain(hidden=12):
    return Residual(nn.Sequential(nn.Conv2d(8, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 8, 1)))


def network(*blocks):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), *blocks).eval()


def converted(*blocks, **options):
    return dynamize(network(*blocks), input_size=(3, 4, 4), **options)


def test_a_part_is_told_with_its_share_and_the_reasons_in_groups(caplog):
    with caplog.at_level(logging.WARNING):
        model, table = converted(plain(), ByBatch(), plain(1), ByBatch())
    # 16 positions: 3 · 8 of the stem, 2 · 8 · 12 in three blocks, 2 · 8 in the narrow one.
    share = 2 * 8 * 12 / (3 * 8 + 3 * 2 * 8 * 12 + 2 * 8)
    line = in_part(model, table)
    assert line.startswith(f"1 of 4 blocks, {share:.2f} of the MACs; the others: 2 × ")
    assert re.search(
        r"others: 2 × mean \(test_partial_coverage.py:\d+\) is not known to treat every image by "
        r"itself \[2, …\]; "
        r"1 × 1 hidden channels, fewer than 2 sub-blocks \(nets.py:\d+\) \[3\]$",
        line,
    )
    assert f"dynamize: {line}" in caplog.text
    report = ConversionReport("net", find_blocks(network(plain())), model, table)
    assert report.as_text().splitlines()[0] == line


@pytest.mark.parametrize("options", [{}, {"where": ["1"]}, {"N": {"1": 2}}])
def test_nothing_is_said_of_what_converts_or_was_not_selected(options, caplog):
    with caplog.at_level(logging.WARNING):
        model, table = converted(plain(), plain(), **options)
    assert caplog.text == ""
    line = in_part(model, table)
    assert bool(line) == bool(options)
    assert set(left_dense(model).values()) == ({"not selected"} if options else set())


class Saves(nn.Sequential):
    """It saves itself, as the networks of transformers do."""

    def save_pretrained(self, folder, state_dict=None):
        return folder


def test_a_network_that_saves_itself_says_that_its_conversion_would_be_lost():
    source = Saves(*network(plain(), plain()))
    model = dynamize(source, input_size=(3, 4, 4)).model
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ConversionError, match=r"Save with dmnn_convert\.save"):
            each.save_pretrained("here")
        assert each.save_pretrained("here", state_dict=each.state_dict()) == "here"
    assert isinstance(model, Saves) and source.save_pretrained("here") == "here"
    assert freeze(model, 1.0).save_pretrained("here") == "here"
