"""Small networks as users write them, and helpers that look at models from outside."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from norms import draw_norms, normal, uniform
from timm.layers import DropPath
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from dmnn_convert.io import zoo

ROOT = Path(__file__).resolve().parents[2]
CIFAR = ROOT / "examples" / "cifar_resnet.py"


# --- helpers ----------------------------------------------------------------------------------


WIDE = {
    "weight": uniform(0.5, 1.5),
    "bias": normal(),
    "running_mean": normal(),
    "running_var": uniform(0.5, 1.5),
}


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm values of its own that differ widely, in place."""
    return draw_norms(model, WIDE, torch.Generator().manual_seed(seed))


def unfilled(make: Callable[[], nn.Module]) -> nn.Module:
    """Build a model without drawing its weights, for what reads no more than its structure."""
    with torch.device("meta"):
        model = make()
    return model.to_empty(device="cpu")


def images(model: nn.Module, size: tuple[int, ...], batch: int = 4, seed: int = 1) -> Tensor:
    """Draw a batch of the model's dtype."""
    x = torch.randn(batch, *size, generator=torch.Generator().manual_seed(seed))
    return x.to(next(model.parameters()).dtype)


def off_by(got: Tensor, expected: Tensor) -> float:
    """Return the largest error over the largest magnitude."""
    return float((got - expected).detach().abs().max() / expected.detach().abs().max())


def cifar_resnet20() -> nn.Module:
    return zoo.build(f"{CIFAR}:resnet20")


def conv_norm(c_in: int, c_out: int, kernel: int = 3, dims: int = 2, **options) -> nn.Sequential:
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    options = {"padding": kernel // 2, "bias": False, **options}
    return nn.Sequential(conv(c_in, c_out, kernel, **options), norm(c_out))


# --- how the sum is written -------------------------------------------------------------------

SUMS = {
    "plus": lambda branch, x: branch + x,
    "plus_turned": lambda branch, x: x + branch,
    "torch_add": lambda branch, x: torch.add(branch, x),
    "torch_add_turned": lambda branch, x: torch.add(x, branch),
    "method": lambda branch, x: branch.add(x),
    "method_turned": lambda branch, x: x.add(branch),
    "method_in_place": lambda branch, x: branch.add_(x),
}


class SumBlock(nn.Module):
    """A basic block whose sum is written in one of the ways."""

    def __init__(self, how: str, width: int = 8, after: bool = True) -> None:
        super().__init__()
        self.how, self.after = how, after
        self.first, self.second = conv_norm(width, width), conv_norm(width, width)

    def forward(self, x):
        out = self.second(F.relu(self.first(x)))
        if self.how == "augmented":
            out += x
        else:
            out = SUMS[self.how](out, x)
        return F.relu(out, inplace=True) if self.after else out


def sums(how: str, after: bool = True) -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 8), nn.ReLU(), SumBlock(how, after=after), SumBlock(how, after=after)
    )


# --- where the sum stands ---------------------------------------------------------------------


class Inline(nn.Module):
    """The residual sums stand in the root's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.a1, self.b1, self.a2, self.b2 = (conv_norm(8, 8) for _ in range(4))
        self.down1, self.down2 = conv_norm(8, 12, stride=2), conv_norm(12, 12)
        self.project = conv_norm(8, 12, 1, stride=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.b1(self.a1(x).relu())
        x = (self.b2(self.a2(x).relu()) + x).relu()
        x = (self.down2(self.down1(x).relu()) + self.project(x)).relu()
        return self.head(x.mean((2, 3)))


def closure() -> nn.Module:
    """Blocks made by a factory: their class exists once for each call."""

    def block(width: int) -> nn.Module:
        class Made(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Sequential(*conv_norm(8, width), nn.ReLU(), conv_norm(width, 8))

            def forward(self, x):
                return x + self.body(x)

        return Made()

    return nn.Sequential(conv_norm(3, 8), block(8), nn.Sequential(block(16), nn.ReLU()))


class Residual(nn.Module):
    """x + f(x) for any module f."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x):
        return self.shortcut(x) + self.body(x)


def nested() -> nn.Module:
    """Sequentials in Sequentials."""

    def body(c_in: int, c_out: int, stride: int) -> nn.Module:
        first = nn.Sequential(conv_norm(c_in, c_out, stride=stride), nn.Sequential(nn.ReLU()))
        return nn.Sequential(first, nn.Sequential(conv_norm(c_out, c_out)))

    return nn.Sequential(
        nn.Sequential(conv_norm(3, 8), nn.ReLU()),
        nn.Sequential(Residual(body(8, 8, 1)), nn.Sequential(nn.ReLU(), Residual(body(8, 8, 1)))),
        nn.Sequential(Residual(body(8, 16, 2), conv_norm(8, 16, 1, stride=2)), nn.ReLU()),
    )


# --- functional style -------------------------------------------------------------------------


class FunctionalBlock(nn.Module):
    """F.batch_norm with the tensors of modules that are never called."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def norm(self, x, bn):
        return F.batch_norm(
            x, bn.running_mean, bn.running_var, bn.weight, bn.bias, training=self.training
        )

    def forward(self, x):
        out = F.relu(self.norm(self.conv1(x), self.bn1))
        return F.relu(self.norm(self.conv2(out), self.bn2) + x)


def functional() -> nn.Module:
    return nn.Sequential(conv_norm(3, 8), FunctionalBlock(), FunctionalBlock())


class RootHeld(nn.Module):
    """Functional norms whose tensors the root itself holds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 10, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(10, 8, 3, padding=1, bias=False)
        for i, width in ((1, 10), (2, 8)):
            self.register_parameter(f"gamma{i}", nn.Parameter(torch.rand(width) + 0.5))
            self.register_parameter(f"beta{i}", nn.Parameter(torch.randn(width)))
            self.register_buffer(f"mean{i}", torch.randn(width))
            self.register_buffer(f"var{i}", torch.rand(width) + 0.5)

    def forward(self, x):
        x = self.stem(x)
        train = self.training
        out = self.conv1(x)
        out = F.batch_norm(out, self.mean1, self.var1, self.gamma1, self.beta1, train).relu()
        out = self.conv2(out)
        out = F.batch_norm(out, self.mean2, self.var2, self.gamma2, self.beta2, train)
        return F.relu(x + out)


class DropoutBlock(nn.Module):
    """Functional dropout inside the branch, or after it."""

    def __init__(self, inside: bool, p: float = 0.5) -> None:
        super().__init__()
        self.inside, self.p = inside, p
        self.first, self.second = conv_norm(8, 8), conv_norm(8, 8)

    def forward(self, x):
        out = F.relu(self.first(x))
        if self.inside:
            out = F.dropout(out, p=self.p, training=self.training)
        out = self.second(out)
        if not self.inside:
            out = F.dropout(out, self.p, self.training)
        return F.relu(out + x)


def dropout(inside: bool, p: float = 0.5) -> nn.Module:
    return nn.Sequential(conv_norm(3, 8), DropoutBlock(inside, p), DropoutBlock(inside, p))


def stochastic(depth: nn.Module) -> nn.Module:
    """A module of stochastic depth ends the branch."""
    body = nn.Sequential(*conv_norm(8, 8), nn.ReLU(), *conv_norm(8, 8), depth)
    return nn.Sequential(conv_norm(3, 8), Residual(body), nn.ReLU())


# --- kinds of branches ------------------------------------------------------------------------


def inverted(c_in: int, c_out: int, hidden: int, stride: int) -> nn.Module:
    return nn.Sequential(
        *conv_norm(c_in, hidden, 1),
        nn.ReLU6(),
        *conv_norm(hidden, hidden, stride=stride, groups=hidden),
        nn.ReLU6(),
        *conv_norm(hidden, c_out, 1),
    )


def chain() -> nn.Module:
    """MobileNetV2's stride-2 block, which has no sum."""
    return nn.Sequential(
        conv_norm(3, 8),
        nn.ReLU(),
        inverted(8, 12, 24, 2),
        Residual(inverted(12, 12, 36, 1)),
        inverted(12, 16, 36, 2),
    )


def biased() -> nn.Module:
    """Convolutions with biases, with norms and without."""
    normed = nn.Sequential(*conv_norm(8, 8, bias=True), nn.ReLU(), *conv_norm(8, 8, bias=True))
    plain = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=True)
    )
    return nn.Sequential(conv_norm(3, 8), Residual(normed), Residual(plain))


def grouped() -> nn.Module:
    body = nn.Sequential(
        *conv_norm(16, 24, 1), nn.ReLU(), *conv_norm(24, 24, groups=8), nn.ReLU(), conv_norm(24, 16)
    )
    return nn.Sequential(conv_norm(3, 16), Residual(body))


def odd_width() -> nn.Module:
    """Ten hidden channels, which neither 3 nor 4 divides."""
    body = nn.Sequential(*conv_norm(8, 10), nn.ReLU(), *conv_norm(10, 8))
    return nn.Sequential(conv_norm(3, 8), Residual(body), nn.ReLU())


def dense_bottleneck(width: int = 16, hidden: int = 8) -> nn.Module:
    body = nn.Sequential(
        *conv_norm(width, hidden, 1),
        nn.ReLU(),
        *conv_norm(hidden, hidden),
        nn.ReLU(),
        *conv_norm(hidden, width, 1),
    )
    return Residual(body)


def bottlenecks() -> nn.Module:
    return nn.Sequential(conv_norm(3, 16), dense_bottleneck(), nn.ReLU(), dense_bottleneck())


class OptionsBlock(nn.Module):
    """A block whose forward has optional arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_norm(8, 8), conv_norm(8, 8)

    def forward(self, x, mask=None, flag=False):
        out = self.second(F.relu(self.first(x)))
        if mask is not None:
            out = out * mask
        if flag:
            out = out * 0.5
        return F.relu(out + x)


class Options(nn.Module):
    """A root whose forward has optional arguments too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.plain, self.flagged = OptionsBlock(), OptionsBlock()

    def forward(self, x, mask=None, flag=False):
        x = self.plain(self.stem(x), mask)
        x = self.flagged(x, mask=mask, flag=True)
        return -x if flag else x


class Preactivation(nn.Module):
    """Norm and activation come before each convolution."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        return x + self.conv2(F.relu(self.bn2(out)))


def preactivation() -> nn.Module:
    return nn.Sequential(conv_norm(3, 8), Preactivation(), Preactivation())


def of_dims(dims: int) -> nn.Module:
    body = nn.Sequential(*conv_norm(8, 8, dims=dims), nn.ReLU(), *conv_norm(8, 8, dims=dims))
    again = copy.deepcopy(body)
    return nn.Sequential(conv_norm(3, 8, dims=dims), Residual(body), nn.ReLU(), Residual(again))


class Written(nn.Module):
    """Members that are given, and a forward that is given."""

    def __init__(self, written, **members) -> None:
        super().__init__()
        for name, member in members.items():
            setattr(self, name, member)
        self.written = written

    def forward(self, x):
        return self.written(self, x)


class WrittenBlock(Written):
    """The same with two convolutions `a` and `b`, which make a branch."""

    def __init__(self, written, **members) -> None:
        super().__init__(written, a=conv_norm(8, 8), b=conv_norm(8, 8), **members)

    def branch(self, x):
        return self.b(F.relu(self.a(x)))


class Remembering(nn.Module):
    """Its forward leaves things on the module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = conv_norm(3, 8), SumBlock("plus")
        self.last, self.calls = None, 0

    def forward(self, x):
        self.calls += 1
        x = self.block(self.stem(x))
        self.last = x
        return x


class Net(NamedTuple):
    """A network with what is expected of it.

    Attributes:
        build: makes it.
        kinds: kinds of the blocks, in execution order.
        units: the fewest independent hidden units of a block.
        size: shape of one image.
    """

    build: object
    kinds: tuple[str, ...]
    units: int = 8
    size: tuple[int, ...] = (3, 16, 16)


BASIC2 = ("basic", "basic")

NETS: dict[str, Net] = {
    **{f"sum_{how}": Net(lambda how=how: sums(how), BASIC2) for how in (*SUMS, "augmented")},
    "no_activation_after": Net(lambda: sums("plus", after=False), BASIC2),
    "inline": Net(Inline, ("basic", "basic", "basic")),
    "closure": Net(closure, BASIC2),
    "nested": Net(nested, ("basic", "basic", "basic")),
    "functional": Net(functional, BASIC2),
    "root_held": Net(RootHeld, ("basic",), units=10),
    "option_a": Net(cifar_resnet20, ("basic",) * 9, units=16, size=(3, 32, 32)),
    "dropout_inside": Net(lambda: dropout(True), BASIC2),
    "dropout_after": Net(lambda: dropout(False), BASIC2),
    "stochastic_depth": Net(lambda: stochastic(StochasticDepth(0.5, "row")), ("basic",)),
    "drop_path": Net(lambda: stochastic(DropPath(0.5)), ("basic",)),
    "chain": Net(chain, ("inverted-residual",) * 3, units=24),
    "biased": Net(biased, BASIC2),
    "grouped": Net(grouped, ("grouped-bottleneck",)),
    "odd_width": Net(odd_width, ("basic",), units=10),
    "bottlenecks": Net(bottlenecks, ("bottleneck", "bottleneck")),
    "options": Net(Options, BASIC2),
    "preactivation": Net(preactivation, BASIC2),
    "conv1d": Net(lambda: of_dims(1), BASIC2, size=(3, 32)),
    "conv3d": Net(lambda: of_dims(3), BASIC2, size=(3, 6, 8, 8)),
}
