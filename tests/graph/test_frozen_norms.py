"""Norms of fixed tensors: known by what their forward does."""

import torch
from idioms import FrozenNorm, ScaledNorm
from torch import nn

from dmnn_convert.graph.frozen_norms import is_frozen_norm


class OtherBias(FrozenNorm):
    def forward(self, x):
        return super().forward(x) + self.bias.reshape(1, -1, 1, 1)


class OtherInTraining(FrozenNorm):
    def forward(self, x):
        return x if self.training else super().forward(x)


def test_a_norm_of_four_buffers_is_one_whose_channels_stay_apart():
    assert is_frozen_norm(FrozenNorm())


def test_another_function_of_the_same_tensors_is_none():
    assert not any(map(is_frozen_norm, (ScaledNorm(), OtherBias(), OtherInTraining())))


def test_other_tensors_are_none():
    other = FrozenNorm()
    other.extra = nn.Parameter(torch.ones(1))
    assert not is_frozen_norm(other)
    assert not is_frozen_norm(nn.BatchNorm2d(4))
