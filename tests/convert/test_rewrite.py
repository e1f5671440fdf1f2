"""Branches that a module of the model's own ties to the rest: shared, passed through, written."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from quick import one_in, slow_unless
from torch import Tensor, nn

from dmnn_convert import (
    MultiPathBlock,
    NoBlocksFoundError,
    dynamize,
    find_blocks,
    force_gates,
    set_execution,
)

SIZE = (8, 6, 6)


class Swish(nn.Module):
    """An activation of the user's own, without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


class Same(nn.Module):
    """An identity of the user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Drop(nn.Module):
    """A stochastic depth of the user's own: it does nothing in evaluation."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0 or not self.training:
            return x
        kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.p
        return x * kept / (1 - self.p)


class Flipped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)


class Block(nn.Module):
    """Start, conv, middle, activation, conv, end, and the sum."""

    def __init__(
        self,
        act: nn.Module,
        middle: Callable[[], nn.Module] = nn.Identity,
        end: Callable[[], nn.Module] = nn.Identity,
        start: Callable[[], nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        self.start, self.middle, self.end, self.act = start(), middle(), end(), act
        self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.end(self.b(self.act(self.middle(self.a(self.start(x))))))


def check(net: nn.Module, blocks: int) -> nn.Module:
    """Convert all blocks and hold the result, and one step of training, to the source's."""
    net.eval()
    assert sum(block.reason is None for block in find_blocks(net)) == blocks
    model, table = dynamize(net, 2, split="exact", input_size=SIZE)
    assert len(table.blocks) == blocks
    images = torch.randn(4, *SIZE)
    gates = (torch.rand(4, 2 * blocks) > 0.5).float()
    with torch.no_grad():
        with force_gates(model, True):
            torch.testing.assert_close(model(images), net(images))
        with force_gates(model, gates):
            skipped = model(images)
            set_execution(model, "masked")
            torch.testing.assert_close(skipped, model(images))
    with force_gates(model, True):
        torch.testing.assert_close(*(_gradient(m, images) for m in (model, net)))
    return model


def _gradient(model: nn.Module, images: Tensor) -> Tensor:
    for module in model.modules():
        # Chance apart; dropout's layers draw differently, each block's being cut in two.
        module.training = not isinstance(module, nn.Dropout | Drop)
    images = images.clone().requires_grad_()
    torch.manual_seed(3)
    output = model(images * 1)
    (output * torch.linspace(0, 1, output.numel()).view_as(output)).sum().backward()
    assert images.grad is not None
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    return images.grad


@pytest.mark.parametrize("act", [nn.ReLU, Swish, lambda: nn.SiLU(inplace=True)])
def test_one_activation_serves_all_blocks(act: Callable[[], nn.Module]) -> None:
    shared = act()
    model = check(nn.Sequential(Block(shared), Block(shared), shared, Block(shared)), 3)
    assert model[2] is not None


@pytest.mark.parametrize("act", [nn.ReLU(), Swish()])
def test_an_activation_that_belongs_to_the_class(act: nn.Module) -> None:
    class Layer(nn.Module):
        default = act

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(8, 8, 3, padding=1), self.default

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.conv(x))

    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Layer(), Layer()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(self.a(x))

    check(nn.Sequential(Bottleneck(), Bottleneck()), 2)


def test_one_activation_inside_a_block_and_behind_it() -> None:
    shared = nn.SiLU()

    def chain() -> nn.Module:
        depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), shared)
        return nn.Sequential(depthwise, nn.Sequential(nn.Conv2d(8, 8, 1), shared))

    check(nn.Sequential(chain(), chain()), 2)


@pytest.mark.parametrize("passing", [nn.Sequential, Same, lambda: nn.Sequential(Same(), Same())])
@pytest.mark.parametrize("place", slow_unless("middle".__eq__, ["start", "middle", "end"]))
def test_modules_that_pass_their_input_on(passing: Callable[[], nn.Module], place: str) -> None:
    check(nn.Sequential(*(Block(nn.ReLU(), **{place: passing}) for _ in range(2))), 2)


@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_stochastic_depth_of_ones_own_stays(place: str) -> None:
    net = nn.Sequential(*(Block(nn.ReLU(), **{place: Drop}) for _ in range(2)))
    model = check(net, 2)
    model.train()
    images = torch.randn(4, *SIZE)
    with force_gates(model, True):
        outputs = [model(images) for _ in range(8)]
    assert any(not torch.equal(outputs[0], output) for output in outputs[1:])


def test_a_hook_on_a_module_that_passes_its_input_on_is_not_lost() -> None:
    net = nn.Sequential(Block(nn.ReLU()), Block(nn.ReLU(), end=Same))
    net[1].end.register_forward_hook(lambda module, inputs, output: output * 2)
    net.eval()
    model, table = dynamize(net, 2, split="exact", input_size=SIZE)
    assert table.blocks == ("0",)
    images = torch.randn(2, *SIZE)
    with torch.no_grad(), force_gates(model, True):
        torch.testing.assert_close(model(images), net(images))


class WrittenTrunk(nn.Module):
    """A shared trunk (convolution and `norm`), and a layer that writes into what it gives."""

    def __init__(self, norm: nn.Module, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.norm, self.write = nn.Conv2d(8, 8, 1), norm, write
        self.b = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.write(self.norm(self.a(x))))


NORMS = [
    lambda: nn.InstanceNorm2d(8),
    lambda: nn.LayerNorm(6),
    lambda: nn.LocalResponseNorm(2),
    lambda: nn.ChannelShuffle(2),
    Flipped,
]
WRITES = [
    nn.ReLU(inplace=True),
    nn.SiLU(inplace=True),
    nn.Dropout(0.5, inplace=True),
    lambda x: F.leaky_relu(x, 0.1, True),
    lambda x: F.relu(F.dropout(x, 0.0, False), inplace=True),
    lambda x: x.relu_(),
    lambda x: x.mul_(0.5),
]


@pytest.mark.parametrize(
    ("norm", "write"),
    one_in(
        3,
        [
            *((norm, WRITES[0]) for norm in NORMS),
            *((lambda: nn.GroupNorm(1, 8), w) for w in WRITES),
        ],
    ),
)
def test_layers_in_place_on_a_shared_trunk(
    norm: Callable[[], nn.Module], write: Callable[[Tensor], Tensor]
) -> None:
    check(nn.Sequential(WrittenTrunk(norm(), write), WrittenTrunk(norm(), write)), 2)


def test_only_writes_into_shared_values_are_given_up() -> None:
    trunk = WrittenTrunk(nn.GroupNorm(1, 8), nn.ReLU(inplace=True))
    own = Block(nn.ReLU(inplace=True))
    model, _ = dynamize(nn.Sequential(trunk, own), 2, split="exact", input_size=SIZE)
    blocks = [m for m in model.modules() if isinstance(m, MultiPathBlock)]
    layers = [[m.inplace for m in b.modules() if isinstance(m, nn.ReLU)] for b in blocks]
    assert layers == [[False, False], [True, True]]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1) for _ in "ab")

    def forward(self, x: Tensor, scale: float | Tensor = 1.0, *, shift: float = 0.0) -> Tensor:
        return self.b(F.relu(self.a(x) * scale + shift))


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = Scaled()

    def forward(self, x: Tensor, **kwargs: float | Tensor) -> Tensor:
        return x + self.branch(x, **kwargs)


class ByPosition(ByKeyword):
    def forward(self, x: Tensor, *args: float | Tensor) -> Tensor:
        return x + self.branch(x, *args)


class ScaledAfter(ByKeyword):
    def forward(self, x: Tensor, **kwargs: Tensor) -> Tensor:
        return (x + self.branch(x)) * kwargs["scale"]


class Handing(nn.Module):
    """Calls blocks with what they hand on."""

    def __init__(self, call: Callable[..., Tensor], block: type[nn.Module]) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(8, 8, 1), block(), block()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.call(self.two, self.call(self.one, y, x), x)


@pytest.mark.parametrize(
    ("block", "call"),
    [
        (ByKeyword, lambda block, y, x: block(y)),
        (ByKeyword, lambda block, y, x: block(y, scale=0.5, shift=0.1)),
        (ScaledAfter, lambda block, y, x: block(y, scale=x.sigmoid())),
        (ByPosition, lambda block, y, x: block(y)),
        (ByPosition, lambda block, y, x: block(y, 0.5)),
    ],
)
def test_arguments_that_are_handed_on(block: type[nn.Module], call: Callable[..., Tensor]) -> None:
    check(Handing(call, block), 2)


def test_keywords_that_the_model_itself_hands_on() -> None:
    model = check(ByKeyword(), 1)
    with pytest.raises(TypeError, match="scale"):
        model(torch.randn(1, *SIZE), scale=2.0)


@pytest.mark.parametrize("shortcut", [lambda x: x.mean(0, keepdim=True), lambda x: x[:1]])
def test_a_shortcut_of_one_row_for_the_whole_batch(shortcut: Callable[[Tensor], Tensor]) -> None:
    class Net(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return shortcut(x) + super().forward(x)

    check(nn.Sequential(Net(), Block(nn.ReLU())), 2)


# --- tensors of the model's own, passed to a block ----------------------------------------------


class Turned(nn.Module):
    """A block that is given a tensor besides its images, alone or in a tuple."""

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.conv1, self.conv2, self.pair = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), pair

    def forward(self, x: Tensor, turn: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        sine, cosine = turn if self.pair else (turn, turn)
        x = x * cosine + x.flip(1) * sine
        return x + self.conv2(self.conv1(x).relu())


class Turning(nn.Module):
    """A network whose method makes a tensor of a buffer, as rotary embeddings are made."""

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.register_buffer("angles", torch.randn(8, 1, 1), persistent=False)
        self.block, self.pair = Turned(pair), pair

    def turn(self) -> Tensor | tuple[Tensor, Tensor]:
        sine = self.angles.sin()
        return (sine, self.angles.cos()) if self.pair else sine

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, turn=self.turn())


@pytest.mark.parametrize("pair", [False, True])
def test_a_block_follows_the_tensor_that_it_is_given(pair: bool) -> None:
    """It was built in as the block was traced: other dtypes, devices and values got the old one."""
    torch.manual_seed(0)
    source = Turning(pair).eval()
    model = dynamize(source, N=2, input_size=SIZE).model.eval()
    x = torch.randn(3, *SIZE)
    with torch.no_grad(), force_gates(model, True):
        torch.testing.assert_close(model(x), source(x))
        for net in (source, model):
            net.angles.mul_(1.7)
        torch.testing.assert_close(model(x), source(x))
        double = model.double()(x.double())
        assert double.dtype is torch.float64
        torch.testing.assert_close(double, source.double()(x.double()))
        other = torch.full((8, 1, 1), 0.3, dtype=torch.float64)
        given = (other, 2 * other) if pair else other
        torch.testing.assert_close(
            model.block(x.double(), turn=given), source.block(x.double(), turn=given)
        )
    assert model.to("meta")(x.to("meta")).is_meta


@dataclasses.dataclass
class Angles:
    sine: Tensor


@dataclasses.dataclass
class SlottedAngles:
    __slots__ = ("sine",)
    sine: Tensor


class TurnedBy(nn.Module):
    """A block that takes a tensor out of an object that it is given."""

    def __init__(self, read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.conv1, self.conv2, self.read = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), read

    def forward(self, x: Tensor, turn: Any) -> Tensor:
        x = x * self.read(turn)
        return x + self.conv2(self.conv1(x).relu())


class TurningBy(nn.Module):
    """A network that hides a tensor of its own in an object that its block is given."""

    def __init__(self, hide: Callable[[Tensor], Any], read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.register_buffer("angles", torch.randn(8, 1, 1), persistent=False)
        self.block, self.hide = TurnedBy(read), hide

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, turn=self.hide(self.angles.sin()))


HIDDEN: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "object": (Angles, lambda turn: turn.sine),
    "slots": (SlottedAngles, lambda turn: turn.sine),
    "nested": (lambda sine: [Angles(sine)], lambda turn: turn[0].sine),
    "closure": (lambda sine: lambda: sine, lambda turn: turn()),
    "partial": (lambda sine: functools.partial(torch.neg, sine), lambda turn: turn()),
    "method": (lambda sine: Angles(sine).__getattribute__, lambda turn: turn("sine")),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_tensor_that_an_argument_hides_is_not_built_in(kind: str) -> None:
    source = TurningBy(*HIDDEN[kind]).eval()
    with pytest.raises(NoBlocksFoundError, match="tensors in a list, tuple, dict or other object"):
        dynamize(source, N=2, input_size=SIZE)
