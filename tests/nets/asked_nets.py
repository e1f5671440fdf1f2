"""Residual blocks whose forward is given, for tests of the ways in which forwards are written."""

import torch
import torch.nn.functional as F
from torch import nn

import dmnn_convert as dc


class Block(nn.Module):
    """A residual block whose forward is given."""

    def __init__(self, forward=None, **attributes):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.__dict__.update(attributes)
        if forward is not None:
            self.__class__ = type("Block", (Block,), {"forward": forward})

    def forward(self, x):
        return x + self.b(F.relu(self.a(x)))


class Net(nn.Module):
    """Such a block, and an ordinary one behind it."""

    def __init__(self, block):
        super().__init__()
        self.blocks = nn.Sequential(block, Block())

    def forward(self, x):
        return self.blocks(x)


def converted(net, **options):
    return dc.dynamize(net, 2, split="exact", input_size=(8, 16, 16), **options).model


def on(model, images):
    with dc.force_gates(model, True):
        return model(images)


def blocks(model):
    return sum(isinstance(m, dc.MultiPathBlock) for m in model.modules())


IMAGES = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))


def branch(self, x):
    return self.b(F.relu(self.a(x)))
