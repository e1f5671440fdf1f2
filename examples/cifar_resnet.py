"""He et al.'s residual networks for CIFAR (arXiv 1512.03385, section 4.2).

    dmnn-convert --arch examples/cifar_resnet.py:resnet20

Inputs are (B, 3, 32, 32). The shortcut has no parameters ("option A"): where a stage narrows the
image and widens the channels, it takes every other pixel and pads the channels with zeros.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class PadShortcut(nn.Module):
    """Every other pixel (or all), and zero channels shared evenly between front and back."""

    def __init__(self, added_channels: int, stride: int = 2) -> None:
        super().__init__()
        self.stride = stride
        self.front = added_channels // 2
        self.back = added_channels - self.front

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.front, self.back))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, with `channels` · `ratio` channels between them."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, ratio: float = 1.0) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else PadShortcut(channels - in_channels)

    def forward(self, x: Tensor) -> Tensor:
        branch = F.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        return F.relu(branch + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 1×1, a 3×3 and a 1×1 convolution beside a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, ratio: float = 1.0) -> None:
        super().__init__()
        hidden, out = int(channels * ratio), channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        same = stride == 1 and in_channels == out
        self.shortcut = nn.Identity() if same else PadShortcut(out - in_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        branch = F.relu(self.bn1(self.conv1(x)))
        branch = F.relu(self.bn2(self.conv2(branch)))
        return F.relu(self.bn3(self.conv3(branch)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """A 3×3 stem, three stages of 16, 32 and 64 channels, average pool, classifier.

    Its depth is 6 · `blocks_per_stage` + 2 layers, or 9 · `blocks_per_stage` + 2 of bottlenecks,
    which have four times as many output channels.
    """

    def __init__(
        self,
        blocks_per_stage: int,
        num_classes: int = 10,
        block: type[BasicBlock | Bottleneck] = BasicBlock,
        ratio: float = 1.0,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        wide = [16, *(block.expansion * c for c in (16, 32, 64))]
        for i in range(3):
            strides = [1 if i == 0 else 2] + [1] * (blocks_per_stage - 1)
            inputs = [wide[i]] + [wide[i + 1]] * (blocks_per_stage - 1)
            blocks = (
                block(c, 16 * 2**i, stride, ratio)
                for c, stride in zip(inputs, strides, strict=True)
            )
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(wide[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def resnet20(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-20: 0.27 M parameters."""
    return CifarResNet(3, num_classes)


def resnet32(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-32: 0.46 M parameters."""
    return CifarResNet(5, num_classes)


def resnet44(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-44: 0.66 M parameters."""
    return CifarResNet(7, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-56: 0.85 M parameters."""
    return CifarResNet(9, num_classes)


def resnet20_quarter(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-20 with a quarter of the channels inside its blocks, and of the MACs."""
    return CifarResNet(3, num_classes, ratio=0.25)


def resnet20_half(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-20 with half as many channels inside its blocks: half of the MACs."""
    return CifarResNet(3, num_classes, ratio=0.5)


def resnet20_three_quarters(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-20 with three quarters of the channels inside its blocks, and of the MACs."""
    return CifarResNet(3, num_classes, ratio=0.75)


def resnet56_quarter(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-56 with a quarter of the channels inside its blocks, and of the MACs."""
    return CifarResNet(9, num_classes, ratio=0.25)


def resnet56_half(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-56 with half as many channels inside its blocks: half of the MACs."""
    return CifarResNet(9, num_classes, ratio=0.5)


def resnet56_three_quarters(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-56 with three quarters of the channels inside its blocks, and of the MACs."""
    return CifarResNet(9, num_classes, ratio=0.75)


def bottleneck29(num_classes: int = 10) -> CifarResNet:
    """Build a ResNet-29 of bottlenecks: 0.3 M parameters."""
    return CifarResNet(3, num_classes, block=Bottleneck)
