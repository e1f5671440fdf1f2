"""A batch norm in evaluation, as a scale and a shift."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from dmnn_convert.nn import AnyBatchNorm, scale_and_shift

NORMS = {
    "affine": nn.BatchNorm2d(5),
    "not_affine": nn.BatchNorm2d(5, affine=False),
    "any": AnyBatchNorm(5, eps=0.1),
    "frozen": FrozenBatchNorm2d(5),
}


@pytest.mark.parametrize("name", NORMS)
def test_scale_and_shift_are_what_the_norm_does(name):
    norm = NORMS[name].double().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in norm.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2)
        x = torch.randn(4, 5, 3, 3, dtype=torch.float64)
        scale, shift = scale_and_shift(norm)
        torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], norm(x))
    assert not scale.requires_grad


def test_another_eps():
    norm = nn.BatchNorm1d(2, affine=False)
    scale, shift = scale_and_shift(norm, 3.0)
    torch.testing.assert_close(scale, torch.full((2,), 0.5, dtype=torch.float64))
    assert not shift.any()
