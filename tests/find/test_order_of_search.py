"""Independence of the search from the order in which Python's sets happen to be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch
from torch import nn
import torch.nn.functional as F
import dmnn_convert as dc


class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.w, self.mix = nn.Parameter(torch.rand(12)), nn.Parameter(torch.rand(8, 8))

    def forward(self, x):
        y = torch.einsum("bchw,c->bchw", F.relu(self.a(x)), self.w)
        return x + self.b(y)


class Mixing(Einsum):
    def forward(self, x):
        y = super().forward(x)
        return y + self.b(F.relu(self.a(torch.einsum("bchw,cd->bdhw", y, self.mix))))


class Plain(nn.Module):
    def __init__(self, groups=1):
        super().__init__()
        self.a = nn.Conv2d(8, 16, 3, padding=1, groups=groups)
        self.n, self.b = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1)

    def forward(self, x):
        return x + self.b(F.silu(self.n(self.a(x))))


torch.manual_seed(0)
net = nn.Sequential(Plain(), Einsum(), Mixing(), Plain(8), Plain(2), Einsum()).eval()
for block in dc.find_blocks(net, (8, 16, 16)):
    print(block.name, block.kind, block.hidden, block.exact_split, block.reason)
model, table = dc.dynamize(net, 2, split="exact", input_size=(8, 16, 16))
print(table.blocks)
print([(name, tuple(value.shape)) for name, value in model.state_dict().items()])
"""


def said(seed):
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.slow
def test_the_same_is_found_in_the_same_order_in_every_process():
    first, *others = (said(seed) for seed in ("0", "1", "42"))
    assert "\n0 " in f"\n{first}"
    assert len(first.splitlines()) >= 8
    assert others == [first, first]
