"""Whole networks by name: those of `nets.py`, torchvision's and timm's."""

import timm
import torch
from nets import NETS, randomised
from torch import nn
from torchvision import models

SMALL = (3, 64, 64)


def build(name: str, seed: int = 0) -> nn.Module:
    """Build "name" of `nets`, else of torchvision, or "timm:name"; norms randomised; evaluation."""
    torch.manual_seed(seed)
    if name in NETS:
        return randomised(NETS[name].build()).eval()
    make = timm.create_model if name.startswith("timm:") else models.get_model
    return randomised(make(name.removeprefix("timm:"))).eval()


def size_of(name: str) -> tuple[int, ...]:
    return NETS[name].size if name in NETS else SMALL
