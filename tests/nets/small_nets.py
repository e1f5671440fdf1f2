"""Networks of a few channels, one for each kind of block, and helpers to modify them."""

from __future__ import annotations

import torch
from norms import draw_norms, normal, uniform
from torch import Tensor, nn

IMAGE = (3, 8, 8)


class ResidualReLU(nn.Module):
    """The ReLU of a branch and its shortcut, as in ResNets."""

    def __init__(self, branch: nn.Module, down: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.down = branch, down

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + (x if self.down is None else self.down(x)))


def conv_bn(c_in: int, c_out: int, k: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, k, stride, k // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out)]


def basic(c_in: int, c: int, stride: int = 1) -> nn.Module:
    branch = nn.Sequential(*conv_bn(c_in, c, 3, stride), nn.ReLU(), *conv_bn(c, c, 3))
    same = c_in == c and stride == 1
    return ResidualReLU(branch, None if same else nn.Sequential(*conv_bn(c_in, c, 1, stride)))


def bottleneck(c_in: int, hidden: int, c: int, stride: int = 1) -> nn.Module:
    convs = [*conv_bn(c_in, hidden, 1), nn.ReLU(), *conv_bn(hidden, hidden, 3, stride), nn.ReLU()]
    branch = nn.Sequential(*convs, *conv_bn(hidden, c, 1))
    same = c_in == c and stride == 1
    return ResidualReLU(branch, None if same else nn.Sequential(*conv_bn(c_in, c, 1, stride)))


class Inverted(nn.Sequential):
    def __init__(self, c_in: int, c: int, stride: int = 1) -> None:
        hidden = 3 * c_in
        super().__init__(
            *conv_bn(c_in, hidden, 1),
            nn.ReLU6(),
            *conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(),
            *conv_bn(hidden, c, 1),
        )
        self.adds = c_in == c and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return x + y if self.adds else y


class Net(nn.Module):
    """Stem, two blocks, pooling and a linear head for five classes."""

    def __init__(self, b1: nn.Module, b2: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.b1, self.b2 = b1, b2
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b2(self.b1(self.stem(x))).mean((2, 3)))


def basic_net() -> Net:
    return Net(basic(8, 8), basic(8, 16, stride=2))


def bottleneck_net() -> Net:
    return Net(bottleneck(8, 8, 16), bottleneck(16, 8, 16))


def inverted_net() -> Net:
    """The second block has no shortcut."""
    return Net(Inverted(8, 8), Inverted(8, 16, stride=2))


NETS = {"basic": basic_net, "bottleneck": bottleneck_net, "inverted": inverted_net}


NARROW = {
    "running_mean": normal(0.3),
    "running_var": uniform(0.5, 2),
    "weight": uniform(0.5, 1.5),
    "bias": normal(0.3),
}


def seasoned(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms statistics and affine parameters of their own, as training would; evaluation."""
    return draw_norms(net, NARROW, torch.Generator().manual_seed(seed)).eval()


def settled(net: nn.Module, x: Tensor) -> nn.Module:
    """Give norms the statistics of these images, in place, as training would; in training."""
    seasoned(net)
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    return net


def images(batch: int, seed: int = 0, size: tuple[int, ...] = IMAGE) -> Tensor:
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(seed))


def random_gates(batch: int, total: int, rate: float = 0.5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, total, generator=generator) < rate).float()
