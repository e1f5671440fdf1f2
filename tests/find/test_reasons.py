"""A reason names the line of the user's code that is in the way."""

import re

import pytest
import torch.nn.functional as F
from idioms import C, Net, another_way, block, conv
from torch import nn

from dmnn_convert import find_blocks


def shared_norm(self, x):
    x = x + self.b(F.relu(self.a(self.n(x))))
    return x + self.d(F.relu(self.c(self.n(x))))


REASONS = {
    "a norm of two branches": (
        block(shared_norm, n=lambda: nn.BatchNorm2d(C), c=conv, d=lambda: conv(12, C)),
        r"blocks.0.n is called 2 times in one forward \(test_reasons.py:\d+, test_reasons.py:\d+\);"
        " a layer for each call",
    ),
    "modes": (
        block(another_way),
        r"its forward differs between training and evaluation \(\w+.py:\d+\)",
    ),
    "depthwise alone": (
        block(lambda self, x: x + self.g(x), g=lambda: conv(C, C, groups=C)),
        r"grouped convolutions only: blocks_0_g \(test_reasons.py:\d+\)",
    ),
    "a masked weight": (
        block(
            lambda self, x: x + F.conv2d(x, self.c.weight * self.c.weight.gt(0), padding=1),
            c=lambda: conv(C, C),
        ),
        r"conv2d \(test_reasons.py:\d+\) reads a weight that the forward computes",
    ),
    "two branches": (
        block(lambda self, x: self.a(x) + self.c(x), c=conv, b=nn.Identity),
        r"none of them is the shortcut of add \(test_reasons.py:\d+\)",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_names_the_line(name):
    build, said = REASONS[name]
    model = Net(build())
    model.fc = nn.Identity()
    reasons = [b.reason for b in find_blocks(model.eval())]
    assert any(reason and re.search(said, reason) for reason in reasons), reasons
