"""Gates as branches that a device takes by itself."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import pytest
import torch
import torchvision.models as zoo
from nets import off_by, randomised
from torch.utils._python_dispatch import TorchDispatchMode

from dmnn_convert import dynamize, force_gates, prepare
from dmnn_convert.nn import controllers
from dmnn_convert.runtime.branches import branch

SIZE = 32


class Nodes(TorchDispatchMode):
    """A CUDA graph's conditional nodes on the CPU.

    There, both branches are captured, and what the second one makes is copied into what the first
    one would have made, whose memory holds anything if it has not run.
    """

    def __init__(self) -> None:
        self.supports_higher_order_operators = True
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not torch.ops.higher_order.cond:
            return func(*args, **(kwargs or {}))
        on, first, second, operands = args
        with self:
            made = first(*operands)
            if not on:
                made.fill_(float("nan"))
            other = second(*operands)
            if not on:
                made.copy_(other)
        return made


@pytest.mark.parametrize("keep_one", [False, True])
@pytest.mark.parametrize("N", [1, 2, 3])
def test_every_key_is_reached(N, keep_one):
    captured = set()

    def run(key):
        captured.add(key)
        return torch.tensor(float(key))

    for bits in itertools.product([False, True], repeat=N):
        if any(bits) or not keep_one:
            expected = sum(2**n for n, bit in enumerate(bits) if bit)
            assert branch(torch.tensor(bits), run, keep_one=keep_one) == expected
            with Nodes():
                assert branch(torch.tensor(bits), run, keep_one=keep_one) == expected
    assert captured == set(range(int(keep_one), 2**N))


@pytest.fixture(
    scope="module",
    params=[(zoo.resnet18, {}), (zoo.resnet18, {"N": 4}), (zoo.mobilenet_v2, {"split": "exact"})],
    ids=["resnet18", "resnet18-N4", "mobilenet_v2"],
)
def ready(request):
    build, options = request.param
    model = dynamize(randomised(build()), input_size=(3, SIZE, SIZE), **options).model.eval()
    for controller in controllers(model):
        torch.nn.init.normal_(controller.w3.weight, 0, 0.5)
        controller.w3.bias.data.zero_()
    image = torch.randn(1, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    return prepare(model, image, autotune=False), image


def forced(model, gates):
    return nullcontext() if gates is None else force_gates(model, gates)


@pytest.mark.parametrize("nodes", [False, True], ids=["read", "nodes"])
@pytest.mark.parametrize("gates", [True, False, 0.3, 0.6, None])
def test_branches_give_what_skipping_gives(ready, nodes, gates):
    prepared, image = ready
    before = image.clone()
    with torch.no_grad(), forced(prepared, gates):
        expected = prepared.run_together(image)
    with torch.no_grad(), forced(prepared, gates), Nodes() if nodes else nullcontext():
        got = prepared.run_branched(image)
    assert off_by(got, expected) < 1e-5
    assert torch.equal(image, before)
    assert torch.equal(prepared(image), prepared.run_together(image))  # nothing is left behind
