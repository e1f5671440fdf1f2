"""The idioms in which people write blocks by hand, each as a network of one or two of them.

`IDIOMS` says how many blocks a human counts in each.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from nets import randomised
from torch import nn

C, HIDDEN = 8, 12


class Idiom(NamedTuple):
    """How to build a network, the blocks that a human counts in it, and its image's shape."""

    build: Callable[[], nn.Module]
    blocks: int = 2
    size: tuple[int, ...] = (3, 12, 12)


class Net(nn.Module):
    """A stem, some blocks in a row and a classifier; `more` goes to every block."""

    def __init__(self, *blocks: nn.Module, stem: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = stem or nn.Conv2d(3, C, 3, padding=1)
        self.blocks = nn.ModuleList(blocks)
        self.fc = nn.Linear(C, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def net(block: Callable[[], nn.Module], **options) -> Callable[[], nn.Module]:
    return lambda: Net(block(), block(), **options)


def conv(inputs: int = C, outputs: int = HIDDEN, kernel: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def block(written: Callable, **members: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A block type: two convolutions `a`, `b`, further members, and a forward."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(), conv(HIDDEN, C)
            for name, make in members.items():
                setattr(self, name, make())

        def forward(self, x):
            return written(self, x)

    return Block


# --- 1: keywords that nobody gives -----------------------------------------------------------


class KeywordBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), conv(HIDDEN, C)

    def forward(self, x, **kwargs):
        kwargs.pop("scale", None)
        y = self.b(F.relu(self.a(x)))
        if kwargs.get("skip", False):
            return y
        return x + y


class KeywordNet(Net):
    def forward(self, x, **kwargs):
        kwargs.setdefault("scale", 1)
        flag = kwargs.get("return_dict", True)
        x = self.stem(x)
        for each in self.blocks:
            x = each(x, **kwargs)
        x = self.fc(x.mean((2, 3)))
        return {"logits": x} if flag and "as_dict" in kwargs else x


class NestedKeywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = KeywordNet(KeywordBlock(), KeywordBlock())

    def forward(self, images, output=None, **kwargs):
        return self.body(images, **kwargs)


class KeywordsAndValues(KeywordNet):
    def forward(self, x, *args, **kwargs):
        if len(args):
            raise ValueError("too much")
        return super().forward(x, **kwargs)


# --- 2: sizes that decide --------------------------------------------------------------------


class SamePadded(nn.Module):
    """TensorFlow's "same": what is padded depends on the size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(C, HIDDEN, 3), conv(HIDDEN, C)

    def forward(self, x):
        height, width = x.shape[-2:]
        across = max((math.ceil(height / 1) - 1) + 3 - height, 0)
        along = max((math.ceil(width / 1) - 1) + 3 - width, 0)
        y = F.pad(x, [across // 2, across - across // 2, along // 2, along - along // 2])
        return x + self.b(F.relu(self.a(y)))


def padded_to_multiple(self, x):
    height, width = x.size()[-2:]
    if height % 4 or width % 4:
        x = F.pad(x, (0, (4 - width % 4) % 4, 0, (4 - height % 4) % 4))
    return x + self.b(F.relu(self.a(x)))


def checked_size(self, x):
    _, channels, height, width = x.shape
    assert channels == C and height == width, "not that size"
    return x + self.b(F.relu(self.a(x)))


def cropped(self, x):
    y = self.b(F.relu(self.a(x)))
    if y.shape != x.shape:
        y = y[:, :, : x.shape[2], : x.shape[3]]
    return x + y


def cropped_again(self, x):
    height, width = x.shape[-2:]
    y = F.pad(x, (0, -width % 8, 0, -height % 8))
    return x + self.b(F.relu(self.a(y)))[..., :height, :width]


def windows(self, x):
    size = 4
    if min(x.shape[2], x.shape[3]) <= size:
        size = min(x.shape[2], x.shape[3])
    y = F.avg_pool2d(F.relu(self.a(x)), 2 if size > 2 else 1)
    return x + F.interpolate(self.b(y), size=x.shape[2:])


def looped_over_batch(self, x):
    if len(x) == 0:
        return x
    return x + self.b(F.relu(self.a(x)))


# --- 3: layers by another name ---------------------------------------------------------------


class NamedConv(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)


class DynamicSame(nn.Conv2d):
    """efficientnet_pytorch's."""

    def forward(self, x):
        height, width = x.size()[-2:]
        needed = [
            max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
            for size, s, k, d in zip(
                (height, width), self.stride, self.kernel_size, self.dilation, strict=True
            )
        ]
        if needed[0] > 0 or needed[1] > 0:
            x = F.pad(
                x,
                [
                    *(needed[1] // 2, needed[1] - needed[1] // 2),
                    *(needed[0] // 2, needed[0] - needed[0] // 2),
                ],
            )
        return F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Standardised(nn.Conv2d):
    """BiT's."""

    def forward(self, x):
        weight = self.weight
        variance, mean = torch.var_mean(weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (weight - mean) / torch.sqrt(variance + 1e-10)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class NamedNorm(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3)


class NamedLinear(nn.Linear):
    pass


class NamedActivation(nn.ReLU):
    pass


class Functional(nn.Module):
    """Parameters of its own and functions."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(HIDDEN, C, 3, 3) * 0.1)
        self.b1 = nn.Parameter(torch.randn(HIDDEN) * 0.1)
        self.w2 = nn.Parameter(torch.randn(C, HIDDEN, 3, 3) * 0.1)

    def forward(self, x):
        y = F.relu(F.conv2d(x, self.w1, self.b1, padding=1))
        return x + F.conv2d(y, self.w2, padding=1)


class FunctionalLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(C, HIDDEN), nn.Linear(HIDDEN, C)

    def forward(self, x):
        y = x.permute(0, 2, 3, 1)
        y = F.gelu(F.linear(y, self.a.weight, self.a.bias))
        y = F.linear(y, self.b.weight, self.b.bias)
        return x + y.permute(0, 3, 1, 2)


class LearnedGain(nn.Module):
    """A layer reads a parameter only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gain = conv(), conv(HIDDEN, C), nn.Linear(4, HIDDEN)
        self.style = nn.Parameter(torch.randn(1, 4))

    def forward(self, x):
        y = F.relu(self.a(x)) * self.gain(self.style)[:, :, None, None]
        return x + self.b(y)


def normed_block(norm: Callable, conv_type: Callable = conv) -> Callable[[], nn.Module]:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n1, self.b, self.n2 = (
                conv_type(C, HIDDEN),
                norm(HIDDEN),
                conv_type(HIDDEN, C),
                norm(C),
            )

        def forward(self, x):
            return F.relu(x + self.n2(self.b(F.relu(self.n1(self.a(x))))))

    return Block


def same_conv(kind: type) -> Callable[[int, int], nn.Module]:
    return lambda inputs, outputs: kind(inputs, outputs, 3, padding=1)


class SameNet(nn.Module):
    """An inverted residual with and one without shortcut, of convolutions that pad themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = DynamicSame(3, C, 3, stride=2)
        self.blocks = nn.Sequential(inverted_same(1), inverted_same(2))
        self.fc = nn.Linear(C, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def inverted_same(stride: int) -> nn.Module:
    class Inverted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand, self.n0 = DynamicSame(C, 24, 1), nn.BatchNorm2d(24)
            self.deep = DynamicSame(24, 24, 3, stride=stride, groups=24)
            self.n1, self.project, self.n2 = (
                nn.BatchNorm2d(24),
                DynamicSame(24, C, 1),
                nn.BatchNorm2d(C),
            )

        def forward(self, x):
            y = F.relu6(self.n0(self.expand(x)))
            y = self.n2(self.project(F.relu6(self.n1(self.deep(y)))))
            return x + y if stride == 1 else y

    return Inverted()


# --- 4: stochastic depth as a function --------------------------------------------------------


def drop_connect(x, p, training):
    if not training:
        return x
    keep = 1 - p
    mask = keep + torch.rand([x.shape[0], 1, 1, 1], dtype=x.dtype, device=x.device)
    return x / keep * torch.floor(mask)


def drop_in_function(self, x):
    return x + drop_connect(self.b(F.relu(self.a(x))), 0.2, self.training)


def drop_if_training(self, x):
    y = self.b(F.relu(self.a(x)))
    if self.training:
        y = drop_connect(y, 0.2, True)
    return x + y


def dropout_if_training(self, x):
    y = F.relu(self.a(x))
    if self.training and self.p > 0:
        y = F.dropout(y, self.p, True)
    return x + self.b(y)


def drop_rows(self, x):
    y = self.b(F.relu(self.a(x)))
    if self.training:
        y = y * (torch.rand(x.shape[0], 1, 1, 1, device=x.device) < 0.8) / 0.8
    return x + y


def drop_rows_by_size(self, x):
    y = self.b(F.relu(self.a(x)))
    if self.training:
        y = y * torch.bernoulli(torch.full((x.size(0), 1, 1, 1), 0.8)) / 0.8
    return x + y


def another_way(self, x):
    y = F.relu(self.a(x)) if self.training else F.gelu(self.a(x))
    return x + (self.b(y) * 0.9 if self.training else self.b(y))


class DropPath(nn.Module):
    """timm's, copied into a file of one's own."""

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.p = p

    def forward(self, x):
        if self.p == 0.0 or not self.training:
            return x
        keep = 1 - self.p
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        mask = keep + torch.rand(shape, dtype=x.dtype, device=x.device)
        return x.div(keep) * mask.floor_()


# --- 5: one stateless module, called twice ----------------------------------------------------


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class SimpleGate(nn.Module):
    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        return a * b


class SharedMlp(nn.Module):
    """CBAM's channel attention: one MLP for the average and for the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(C, 4, 1), nn.ReLU(), nn.Conv2d(4, C, 1))

    def forward(self, x):
        average = self.mlp(F.adaptive_avg_pool2d(x, 1))
        return x * torch.sigmoid(average + self.mlp(F.adaptive_max_pool2d(x, 1)))


def twice(self, x):
    return self.act(x + self.n(self.b(self.act(self.a(x)))))


class Gated(nn.Module):
    """NAFNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.deep, self.b = conv(C, 16, 1), conv(16, 16, groups=16), conv(8, C, 1)
        self.c, self.d, self.gate = conv(C, 16, 1), conv(8, C, 1), SimpleGate()

    def forward(self, x):
        y = x + self.b(self.gate(self.deep(self.a(x))))
        return y + self.d(self.gate(self.c(y)))


# --- 6: one module under two names ------------------------------------------------------------


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resnet = nn.Sequential(
            conv(3, C), normed_block(nn.BatchNorm2d)(), normed_block(nn.BatchNorm2d)()
        )
        self.features = nn.Sequential(*self.resnet.children())
        self.fc = nn.Linear(C, 5)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


class NamedTwice(nn.Module):
    """nnU-Net's: a convolution by name and in a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(), conv(HIDDEN, C)
        self.all = nn.Sequential(self.conv1, nn.ReLU(), self.conv2)

    def forward(self, x):
        return x + self.all(x)


# --- 7: operations -----------------------------------------------------------------------------


def between(operation: Callable) -> Callable[[], nn.Module]:
    """A block with an operation on its hidden channels."""
    return block(lambda self, x: x + self.b(operation(F.relu(self.a(x)))))


def normed(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return block(lambda self, x: x + self.b(F.relu(self.n(self.a(x)))), n=make)


def vector_norm(y):
    g = torch.linalg.vector_norm(y, ord=2, dim=(2, 3), keepdim=True)
    return y * torch.sigmoid(g)


def spatial_attention(y):
    largest, _ = torch.max(y, dim=1, keepdim=True)
    return y * torch.sigmoid(largest + y.mean(1, keepdim=True))


def first_of_max(y):
    return y * torch.sigmoid(y.max(1)[0].unsqueeze(1))


class SqueezeExcite(nn.Module):
    """MONAI's and moskomule's: sizes are unpacked, and the scale is viewed."""

    def __init__(self, activation: Callable = F.relu) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(HIDDEN, 4), nn.Linear(4, HIDDEN)
        self.activation = activation

    def forward(self, x):
        b, c = x.shape[:2]
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        y = torch.sigmoid(self.up(self.activation(self.down(y)))).view(b, c, 1, 1)
        return x * y.expand_as(x)


class ScaleOfAnyRank(SqueezeExcite):
    """MONAI's own: as many ones as an image has places."""

    def forward(self, x):
        b, c = x.shape[:2]
        y = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3)).view(b, c)))))
        return x * y.view([b, c] + [1] * (x.ndim - 2))


def shortcut_of_zeros(self, x):
    """ResNet's option A, with a pool that is made where it is called."""
    kept = nn.AvgPool2d(1, 1)(x[:, :5])
    zeros = torch.zeros(x.size(0), C - 5, *x.shape[2:], dtype=x.dtype, device=x.device)
    return torch.cat([kept, zeros], 1) + self.b(F.relu(self.a(x)))


def sizes_in_numpy(self, x):
    """SwinUNETR's."""
    sides = np.array(x.shape[2:])
    if (sides % 5).any():
        return x + self.b(F.pad(F.relu(self.a(x)), (0, 0, 0, 5))[:, :, : int(sides[0])])
    return x


def size_behind_norm(self, x):
    y = self.n(self.a(x))
    y = F.pad(y, (0, 0, 0, 1)) if y.shape[2] % 2 else y
    return torch.as_tensor(x) + self.b(F.relu(y))


class FrozenNorm(nn.Module):
    """DETR's, and its many copies: statistics and scales are buffers, eps is in the forward."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.rand(HIDDEN) + 0.5)
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.randn(HIDDEN))

    def forward(self, x):
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        scale = weight * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (bias - self.running_mean.reshape(1, -1, 1, 1) * scale)


class ScaledNorm(FrozenNorm):
    """One whose channels depend on each other."""

    def forward(self, x):
        return super().forward(x) * self.weight.sum()


def compared(y):
    return torch.where(y > 0.2, y, torch.zeros_like(y)).masked_fill(y.lt(0.3), 0.1)


def precise(y):
    return torch.lerp(y.double().sqrt().float(), F.avg_pool2d(y, 3, 1, 1), 0.3)


def pieces(y):
    parts = list(y.split([4, HIDDEN - 4], 1))
    return torch.cat([F.relu(part) for part in parts], 1)


class PooledSqueeze(nn.Module):
    """kuangliu's: x * x.sigmoid() inside."""

    def __init__(self) -> None:
        super().__init__()
        self.se1, self.se2 = nn.Conv2d(HIDDEN, 4, 1), nn.Conv2d(4, HIDDEN, 1)

    def forward(self, x):
        y = F.adaptive_avg_pool2d(x, (1, 1))
        y = self.se1(y)
        y = y * y.sigmoid()
        return x * self.se2(y).sigmoid()


# --- 8: long skips ------------------------------------------------------------------------------


class LongSkip(nn.Module):
    """EDSR's: the first block reads what the long skip reads."""

    def __init__(self) -> None:
        super().__init__()
        self.head = conv(3, C)
        plain = block(lambda self, x: x + self.b(F.relu(self.a(x))) * 0.1)
        self.body = nn.Sequential(plain(), plain(), plain(), conv(C, C))
        self.fc = nn.Linear(C, 5)

    def forward(self, x):
        x = self.head(x)
        return self.fc((x + self.body(x)).mean((2, 3)))


class Decoder(nn.Module):
    """LinkNet's: encoder stages are added to what the decoder makes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, C)
        kind = normed_block(nn.BatchNorm2d)
        self.one, self.two = nn.Sequential(kind(), kind()), nn.Sequential(kind(), kind())
        self.up, self.fc = conv(C, C), nn.Linear(C, 5)

    def forward(self, x):
        first = self.one(self.stem(x))
        second = self.two(first)
        return self.fc((self.up(second) + first).mean((2, 3)))


# --- 9 and 10 -----------------------------------------------------------------------------------


class Conditioned(nn.Module):
    """A diffusion U-Net's: a time embedding is added to the hidden channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.t = conv(), conv(HIDDEN, C), nn.Linear(4, HIDDEN)

    def forward(self, x, embedding):
        y = F.relu(self.a(x)) + self.t(embedding)[:, :, None, None]
        return x + self.b(F.relu(y))


class ConditionedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.embed = conv(3, C), nn.Linear(3, 4)
        self.one, self.two, self.fc = Conditioned(), Conditioned(), nn.Linear(C, 5)

    def forward(self, x):
        embedding = self.embed(x.mean((2, 3)))
        x = self.two(self.one(self.stem(x), embedding), embedding)
        return self.fc(x.mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, C, 4, 4)
        layer = nn.TransformerEncoderLayer(C, 2, HIDDEN, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(C, 5)

    def forward(self, x):
        return self.fc(self.encoder(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


class WrittenNorm(nn.Module):
    """A norm over channels in dimension 1, whose factors come first in the product and the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(C)), nn.Parameter(torch.zeros(C))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Cached(nn.Module):
    """A table that train() makes for evaluation and deletes for training, as LeViT's biases."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3))
        self.register_buffer("places", torch.arange(C) % 3)

    @torch.no_grad()
    def train(self, mode=True):
        super().train(mode)
        if mode and hasattr(self, "made"):
            del self.made
        else:
            self.made = self.table[self.places].view(-1, 1, 1)
        return self

    def forward(self, x):
        return x * (self.table[self.places].view(-1, 1, 1) if self.training else self.made)


class OfTokens(nn.Module):
    """A block that is told the size of the map that its tokens make up, as MViT's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.p, self.q = nn.LayerNorm(C), nn.Linear(C, HIDDEN), nn.Linear(HIDDEN, C)
        self.pool = nn.MaxPool2d(3, 1, 1)

    def forward(self, x, size):
        height, width = size
        assert x.shape[1] == height * width
        y = self.pool(x.transpose(1, 2).unflatten(2, (height, width)))
        x = y.flatten(2).transpose(1, 2)
        return x + self.q(F.gelu(self.p(self.norm(x)))), y.shape[-2:]


class TokenNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.fc = nn.Conv2d(3, C, 3, 3), nn.Linear(C, 5)
        self.one, self.two = OfTokens(), OfTokens()

    def forward(self, x):
        x = self.patch(x)
        size = x.shape[-2:]
        x, size = self.one(x.flatten(2).transpose(1, 2), size)
        x, size = self.two(x, size)
        return self.fc(x.mean(1))


def grouped_last() -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n = conv(C, 16, 1, groups=2), nn.BatchNorm2d(16)
            self.deep, self.b = conv(16, 16, groups=16), conv(16, C, 1, groups=2)

        def forward(self, x):
            return x + self.b(F.relu(self.deep(F.relu(self.n(self.a(x))))))

    return Block()


PRE = block(
    lambda self, x: x + self.b(F.relu(self.a(F.relu(self.n(x))))), n=lambda: nn.BatchNorm2d(C)
)


IDIOMS: dict[str, Idiom] = {
    # 1
    "keywords": Idiom(lambda: KeywordNet(KeywordBlock(), KeywordBlock())),
    "nested keywords": Idiom(NestedKeywords),
    "keywords and values": Idiom(lambda: KeywordsAndValues(KeywordBlock(), KeywordBlock())),
    # 2
    "same padding": Idiom(net(SamePadded)),
    "padded to a multiple": Idiom(net(block(padded_to_multiple))),
    "an assertion on sizes": Idiom(net(block(checked_size))),
    "cropped": Idiom(net(block(cropped))),
    "padded and cropped": Idiom(net(block(cropped_again))),
    "windows": Idiom(net(block(windows))),
    # 3
    "a named convolution": Idiom(net(normed_block(nn.BatchNorm2d, NamedConv))),
    "a convolution that pads itself": Idiom(SameNet),
    "a forward of its own": Idiom(net(normed_block(nn.BatchNorm2d, same_conv(OwnForward)))),
    "standardised weights": Idiom(
        net(normed_block(lambda c: nn.GroupNorm(4, c), same_conv(Standardised)))
    ),
    "a named norm": Idiom(net(normed_block(NamedNorm))),
    "a named linear": Idiom(
        net(
            block(
                lambda self, x: (
                    x + self.q(F.gelu(self.p(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
                ),
                p=lambda: NamedLinear(C, HIDDEN),
                q=lambda: NamedLinear(HIDDEN, C),
            )
        )
    ),
    "a named activation": Idiom(
        net(block(lambda self, x: x + self.b(self.act(self.a(x))), act=NamedActivation))
    ),
    "functions of parameters": Idiom(net(Functional)),
    "F.linear": Idiom(net(FunctionalLinear)),
    "a layer of a parameter": Idiom(net(LearnedGain)),
    # 4
    "drop_connect(training)": Idiom(net(block(drop_in_function))),
    "if self.training: drop_connect": Idiom(net(block(drop_if_training))),
    "dropout in training": Idiom(net(block(dropout_if_training, p=lambda: 0.5))),
    "rows dropped in training": Idiom(net(block(drop_rows))),
    "rows dropped by size": Idiom(net(block(drop_rows_by_size))),
    "another way in training": Idiom(net(block(another_way))),
    "a module of stochastic depth": Idiom(
        net(block(lambda self, x: x + self.drop(self.b(F.relu(self.a(x)))), drop=DropPath))
    ),
    # 5
    "Swish twice": Idiom(net(block(twice, act=Swish, n=lambda: nn.BatchNorm2d(C)))),
    "ReLU twice": Idiom(net(block(twice, act=nn.ReLU, n=lambda: nn.BatchNorm2d(C)))),
    "a container twice": Idiom(
        net(block(twice, act=lambda: nn.Sequential(nn.SiLU()), n=lambda: nn.BatchNorm2d(C)))
    ),
    "SimpleGate twice": Idiom(net(Gated), 4),
    "CBAM's shared MLP": Idiom(
        net(block(lambda self, x: x + self.se(self.b(F.relu(self.a(x)))), se=SharedMlp))
    ),
    # 6
    "children of a backbone": Idiom(Backbone),
    "by name and in a sequence": Idiom(net(NamedTwice)),
    # 7
    "InstanceNorm": Idiom(net(normed(lambda: nn.InstanceNorm2d(HIDDEN, affine=True)))),
    "v, _ = max": Idiom(net(between(spatial_attention))),
    "max(1)[0]": Idiom(net(between(first_of_max))),
    "clamp_": Idiom(net(block(lambda self, x: x + self.b(self.a(x).clamp_(0, 1))))),
    "vector_norm": Idiom(net(between(vector_norm))),
    "linalg.norm": Idiom(
        net(between(lambda y: y / (torch.linalg.norm(y, dim=1, keepdim=True) + 1)))
    ),
    "comparisons": Idiom(net(between(compared))),
    "double and lerp": Idiom(net(between(precise))),
    "F.prelu": Idiom(
        net(block(lambda self, x: x + self.b(F.prelu(self.a(x), self.p.weight)), p=nn.PReLU))
    ),
    "GLU": Idiom(
        net(
            block(
                lambda self, x: x + self.q(F.glu(self.p(x), dim=1)),
                p=lambda: conv(C, 2 * HIDDEN),
                q=lambda: conv(HIDDEN, C),
            )
        )
    ),
    "einsum": Idiom(
        net(
            block(
                lambda self, x: x + self.b(torch.einsum("bchw,c->bchw", self.a(x), self.g)),
                g=lambda: nn.Parameter(torch.randn(HIDDEN)),
            )
        )
    ),
    "sizes unpacked": Idiom(
        net(block(lambda self, x: x + self.b(self.se(F.relu(self.a(x)))), se=SqueezeExcite))
    ),
    "ones for places": Idiom(
        net(block(lambda self, x: x + self.b(self.se(F.relu(self.a(x)))), se=ScaleOfAnyRank))
    ),
    "a module and zeros made in the forward": Idiom(net(block(shortcut_of_zeros))),
    "a size behind a norm": Idiom(net(block(size_behind_norm, n=lambda: nn.BatchNorm2d(HIDDEN)))),
    "sizes in NumPy": Idiom(net(block(sizes_in_numpy))),
    "a frozen norm": Idiom(net(normed(FrozenNorm))),
    "pieces in a list": Idiom(net(between(pieces))),
    "repeat": Idiom(
        net(between(lambda y: y * torch.sigmoid(y.mean((2, 3), keepdim=True)).repeat(1, 1, 12, 12)))
    ),
    # 8
    "a long skip": Idiom(LongSkip, 3),
    "a decoder's sums": Idiom(Decoder, 4),
    # 9
    "squeeze-excite with swish": Idiom(
        net(block(lambda self, x: x + self.b(self.se(F.relu(self.a(x)))), se=PooledSqueeze))
    ),
    "conditioned from outside": Idiom(ConditionedNet),
    "a slice of a Sequential": Idiom(
        net(
            block(
                lambda self, x: x + self.rest[1:](self.rest[0](x).relu()),
                rest=lambda: nn.Sequential(
                    conv(), nn.SiLU(), nn.BatchNorm2d(HIDDEN), conv(HIDDEN, C)
                ),
            )
        )
    ),
    "nn.TransformerEncoder": Idiom(Transformer),
    # 10
    "grouped last convolutions": Idiom(net(grouped_last)),
    # common ones
    "pre-activation": Idiom(net(PRE)),
    "in place": Idiom(net(block(lambda self, x: self.b(F.relu(self.a(x), inplace=True)).add_(x)))),
    "torch.add": Idiom(net(block(lambda self, x: torch.add(self.b(F.relu(self.a(x))), x)))),
    "a scaled branch": Idiom(
        net(
            block(
                lambda self, x: x + self.s * self.b(F.relu(self.a(x))),
                s=lambda: nn.Parameter(torch.ones(1)),
            )
        )
    ),
    "layer scale": Idiom(
        net(
            block(
                lambda self, x: x + self.g[None, :, None, None] * self.b(F.relu(self.a(x))),
                g=lambda: nn.Parameter(torch.ones(C)),
            )
        )
    ),
    "no batch": Idiom(net(block(looped_over_batch))),
    "a written norm before blocks with another": Idiom(
        net(
            block(lambda self, x: x + self.b(F.relu(self.a(self.n(x)))), n=WrittenNorm),
            stem=nn.Sequential(conv(3, C), WrittenNorm()),
        )
    ),
    "a size as an argument": Idiom(TokenNet),
    "a table for evaluation": Idiom(
        lambda: Net(PRE(), PRE(), stem=nn.Sequential(conv(3, C), Cached()))
    ),
}


def build(name: str) -> nn.Module:
    """The network with random weights and statistics, in evaluation."""
    torch.manual_seed(0)
    return randomised(IDIOMS[name].build()).eval()
