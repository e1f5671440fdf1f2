"""One small model for each family converts, keeps its function and runs either way."""

import logging
from collections import Counter

import pytest
import torch
from family_nets import FAMILIES, build
from helpers import run
from nets import images, off_by

from dmnn_convert import dynamize, find_blocks, gate_parameters


def cases():
    return [
        pytest.param(family, id=family.name, marks=[pytest.mark.slow] * (not family.quick))
        for family in FAMILIES
    ]


def kinds(source):
    found = Counter(b.kind for b in find_blocks(source) if b.reason is None)
    return " ".join(f"{kind} {count}" for kind, count in sorted(found.items()))


def own_parameters(model):
    gates = sum(p.numel() for p in gate_parameters(model))
    return sum(p.numel() for p in model.parameters()) - gates


# torch.fx warns that a function it wraps holds for these arguments only.
@pytest.mark.filterwarnings("ignore:Was not able to add assertion to guarantee")
@pytest.mark.parametrize("family", cases())
def test_family(family, caplog):
    caplog.set_level(logging.ERROR)
    source = build(family)
    assert kinds(source) == family.kinds
    x = images(source, family.size, batch=2)
    with torch.no_grad():
        expected = source(x)
    model, table = dynamize(source, 2, split="exact", input_size=family.size)
    assert len(table.blocks) == family.count
    assert off_by(run(model, x), expected) <= 1e-4
    assert off_by(run(model, x, False), expected) > 1e-3
    skipped, masked = (run(model, x, 0.5, how) for how in ("skip", "masked"))
    assert off_by(skipped, masked) <= 1e-5
    del model
    matched, _ = dynamize(source, 2, split="matched", input_size=family.size, inplace=True)
    assert own_parameters(matched) == pytest.approx(table.dense_params, rel=0.01)
