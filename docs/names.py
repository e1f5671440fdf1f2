"""The names that the examples of the API begin with."""

import torch
from torch import nn
from torch.nn import functional as F

from dmnn_convert import *  # noqa: F403
from dmnn_convert import dynamize


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    """A network of your own: two residual blocks, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block1, self.block2 = Block(8), Block(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.block2(self.block1(self.stem(x))).mean((2, 3)))


torch.manual_seed(0)
source = Net().eval()
model, table = dynamize(source, N=4, split="exact", input_size=(3, 16, 16))

images, labels = torch.randn(32, 3, 16, 16), torch.randint(10, (32,))
loader = held_out = [(images, labels)]  # anything that yields batches, as a DataLoader does
