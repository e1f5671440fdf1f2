"""Branches that read a condition besides their input: time embeddings, FiLM."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from quick import slow_unless
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dmnn_convert import dynamize, find_blocks, force_gates, freeze, prepare, set_execution

SIZE = (3, 12, 12)


class Conditioned(nn.Module):
    """The residual block of a diffusion U-Net."""

    def __init__(self, meet: Callable[[nn.Module, Tensor, Tensor], Tensor], groups: int, pieces=1):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, 8), nn.Conv2d(8, 16, 3, padding=1)
        self.embed, self.act = nn.Linear(12, 16 * pieces), nn.SiLU()
        self.norm2, self.conv2 = nn.GroupNorm(groups, 16), nn.Conv2d(16, 8, 3, padding=1)
        self.meet = meet

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv1(self.act(self.norm1(x)))
        h = self.meet(self, h, self.embed(self.act(condition)))
        return x + self.conv2(self.act(h))


def added(block: nn.Module, h: Tensor, e: Tensor) -> Tensor:
    return block.norm2(h + e[:, :, None, None])


def film(block: nn.Module, h: Tensor, e: Tensor) -> Tensor:
    scale, shift = e[..., None, None].chunk(2, dim=1)
    return block.norm2(h) * (1 + scale) + shift


def one_by_one(block: nn.Module, h: Tensor, e: Tensor) -> Tensor:
    e = e.type(h.dtype)
    while len(e.shape) < len(h.shape):
        e = e[..., None]
    return block.norm2(h + e)


def unsqueezed(block: nn.Module, h: Tensor, e: Tensor) -> Tensor:
    return block.norm2(h) * e.unsqueeze(-1).unsqueeze(-1)


def viewed(block: nn.Module, h: Tensor, e: Tensor) -> Tensor:
    return block.norm2(h + e.view(e.shape[0], e.shape[1], 1, 1))


class Net(nn.Module):
    def __init__(self, *blocks: nn.Module, rows: Callable[[Tensor], Tensor] = lambda e: e) -> None:
        super().__init__()
        self.stem, self.time = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(3, 12)
        self.blocks, self.head = nn.ModuleList(blocks), nn.Conv2d(8, 3, 1)
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        condition, x = self.rows(self.time(x.mean((2, 3)))), self.stem(x)
        for block in self.blocks:
            x = block(x, condition)
        return self.head(x)


FORMS = {
    "added": (added, 4, 1),
    "film": (film, 4, 2),
    "added, before a norm of all channels": (added, 1, 1),
    "film, after a norm of all channels": (film, 1, 2),
    "one dimension after the other": (one_by_one, 4, 1),
    "unsqueezed": (unsqueezed, 4, 1),
    "viewed": (viewed, 4, 1),
}


@pytest.fixture(params=slow_unless(lambda name: name in ("added", "film"), FORMS))
def net(request: pytest.FixtureRequest) -> Net:
    torch.manual_seed(3)
    form = FORMS[request.param]
    return Net(Conditioned(*form), Conditioned(*form)).eval()


@pytest.mark.parametrize("split", ["exact", "matched", "nested"])
def test_all_on_equals_the_source(net: Net, split: str) -> None:
    model, _ = dynamize(net, N=2, split=split, input_size=SIZE)
    images = torch.randn(3, *SIZE)
    with force_gates(model, True):
        torch.testing.assert_close(model(images), net(images))


@pytest.mark.parametrize("split", ["exact", "nested"])
def test_each_image_meets_its_own_condition(net: Net, split: str) -> None:
    model, _ = dynamize(net, N=2, split=split, input_size=SIZE)
    model.eval()
    images = torch.randn(5, *SIZE)
    gates = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 1.0]])
    with force_gates(model, gates):
        together = model(images)
        set_execution(model, "masked")
        torch.testing.assert_close(together, model(images))
    set_execution(model, "skip")
    for image, row, expected in zip(images.split(1), gates.split(1), together, strict=True):
        with force_gates(model, row):
            torch.testing.assert_close(model(image)[0], expected)
        torch.testing.assert_close(freeze(model, row[0])(image)[0], expected)


def test_one_condition_may_serve_all_images() -> None:
    blocks = (Conditioned(added, 4), Conditioned(film, 4, 2))
    net = Net(*blocks, rows=lambda e: e.mean(0, keepdim=True)).eval()
    model, _ = dynamize(net, N=2, input_size=SIZE, verify=False)
    images = torch.randn(3, *SIZE)
    gates = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 0, 0.0]])
    with force_gates(model, gates):
        skipping = model(images)
        set_execution(model, "masked")
        torch.testing.assert_close(skipping, model(images))


def test_a_step_reaches_the_embedding(net: Net) -> None:
    model, table = dynamize(net, N=2, split="exact", input_size=SIZE)
    model.train()(torch.randn(4, *SIZE)).square().mean().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all()
        for name, p in model.named_parameters()
        if "controller" not in name
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.randn(1, *SIZE))
    assert table.dense_total == counter.get_total_flops() / 2


def test_prepared_equals_the_model(net: Net) -> None:
    model, _ = dynamize(net, N=2, split="exact", input_size=SIZE)
    model.eval()
    images = torch.randn(4, *SIZE)
    torch.testing.assert_close(prepare(model, images)(images), model(images), atol=1e-5, rtol=1e-4)


def test_the_report_names_the_convolutions_alone() -> None:
    block = find_blocks(Net(Conditioned(film, 4, 2)), SIZE)[0]
    assert (block.kind, block.widths, block.exact_split) == (
        "basic",
        (8, 16, 8),
        "hidden-channel",
    )


# --- what is no condition -----------------------------------------------------------------------


def mapped(block: nn.Module, h: Tensor, e: Tensor) -> Tensor:
    """Add what may be tokens, whose rows need not be images."""
    return block.norm2(h + e)


def first_row(block: nn.Module, h: Tensor, e: Tensor) -> Tensor:
    """Give all images the first one's."""
    return block.norm2(h + e[0][None, :, None, None])


def narrow_row(block: nn.Module, h: Tensor, e: Tensor) -> Tensor:
    """Add along the places."""
    return block.norm2(h + e[:, None, None, :12])


@pytest.mark.parametrize("meet", [mapped, first_row, narrow_row])
def test_other_second_inputs_are_refused(meet: Callable[..., Tensor]) -> None:
    reasons = [b.reason for b in find_blocks(Net(Conditioned(meet, 4)), SIZE)]
    assert reasons
    assert None not in reasons


def test_a_refused_block_is_one_miss_with_a_line_of_the_forward() -> None:
    """The sum of map and embedding is no block, and no reason tells about it."""

    def normed(block: nn.Module, h: Tensor, e: Tensor) -> Tensor:
        return block.norm2(h + nn.functional.layer_norm(e, (16,))[:, :, None, None])

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Conditioned(normed, 4)

        def forward(self, x: Tensor, condition: Tensor) -> Tensor:
            return self.block(x, condition)

    assert [b.name for b in find_blocks(Net(Conditioned(normed, 4)), SIZE)] == ["blocks.0"]
    (miss,) = find_blocks(Bare())
    assert miss.reason is not None
    assert "reads condition" in miss.reason
    assert "test_conditioning.py" in miss.reason


class Lateral(nn.Module):
    """A block that adds another map to its hidden one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.a, self.lateral, self.b = nn.Conv2d(8, 16, 1), nn.Conv2d(6, 16, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        other, x = self.other(x), self.stem(x)
        h = torch.relu(self.a(x) + self.lateral(other))
        return x + self.b(h) + other.mean()


def test_another_map_is_no_condition() -> None:
    reasons = [block.reason for block in find_blocks(Lateral(), SIZE)]
    assert any("its branch reads other" in reason for reason in reasons)


def test_an_embedding_that_others_read_stays_outside() -> None:
    class Shared(Conditioned):
        def forward(self, x: Tensor, condition: Tensor) -> Tensor:
            e = self.embed(condition)
            h = self.norm2(self.conv1(x) + e[:, :, None, None])
            return (x + self.conv2(h)) * e.mean()

    assert all(b.reason for b in find_blocks(Net(Shared(added, 4)), SIZE))


def test_what_is_averaged_first_keeps_its_channels_in_front() -> None:
    class Averaged(nn.Module):
        """The image's mean is the branch's first value, so the controller pools the image."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 16), nn.Linear(16, 8)
            self.stem, self.skip = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y, mean = self.stem(x), self.b(self.a(x.mean((2, 3))))
            return self.skip(y) + mean[:, :, None, None].expand(-1, -1, y.shape[2], y.shape[3])

    source = Averaged().eval()
    model, _ = dynamize(source, input_size=SIZE)
    images = torch.randn(2, *SIZE)
    with force_gates(model, True):
        torch.testing.assert_close(model(images), source(images))
    assert model.eval()(images).isfinite().all()
