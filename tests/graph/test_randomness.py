"""Random numbers of a trace or a check, drawn from streams of its own."""

import itertools
import random
import threading
from random import uniform

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from asked_nets import IMAGES, Block, Net, blocks, converted, on

import dmnn_convert as dc
from dmnn_convert.graph.randomness import Draws


def torch_rand(self, x):
    return (x + self.b(F.relu(self.a(x)))) * torch.rand(1)


def torch_seeded(self, x):
    torch.manual_seed(7)
    return (x + self.b(F.relu(self.a(x)))) * torch.randn(2).mean()


def torch_seeded_anew(self, x):
    torch.manual_seed(torch.seed() % 100)
    return (x + self.b(F.relu(self.a(x)))) * torch.randn(2).mean()


def python(self, x):
    return (x + self.b(F.relu(self.a(x)))) * random.random()


def python_by_name(self, x):
    return (x + self.b(F.relu(self.a(x)))) * uniform(0.5, 1)


def numpy(self, x):
    return (x + self.b(F.relu(self.a(x)))) * float(np.random.rand())


def numpy_function(self, x):
    np.random.seed(3)
    return (x + self.b(F.relu(self.a(x)))) * float(np.random.sample())


def dropout(self, x):
    return F.dropout(x + self.b(F.relu(self.a(x))), 0.1, True)


def torch_state(self, x):
    state = torch.get_rng_state()
    y = F.dropout(self.a(x), 0.5, self.training)
    torch.set_rng_state(state)
    return x + self.b(F.dropout(y, 0.5, self.training))  # drops the same


def torch_forked(self, x):
    with torch.random.fork_rng(devices=()):
        y = F.dropout(self.a(x), 0.5, self.training)
    return x + self.b(F.relu(y))


IN_PYTHON = [torch_rand, torch_seeded, torch_seeded_anew, python, python_by_name, numpy]
IN_PYTHON += [numpy_function]
FORWARDS = [*IN_PYTHON, torch_state, torch_forked, dropout]


def next_draws():
    return float(torch.rand(1)), random.random(), float(np.random.rand())


def seeded():
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)


@pytest.mark.parametrize("forward", FORWARDS)
def test_the_process_keeps_its_generators(forward):
    drawn = []
    for net in (Net(Block()), Net(Block(forward))):
        seeded()
        dc.dynamize(net, 2, split="exact", input_size=(8, 16, 16), where="blocks.1")
        drawn.append(next_draws())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("forward", IN_PYTHON)
def test_a_draw_in_python_is_a_reason_with_its_line(forward):
    block = dc.find_blocks(Net(Block(forward)))[-1]
    line = forward.__code__.co_firstlineno + 1
    assert f"draws random numbers in Python (test_randomness.py:{line})" in block.reason


@pytest.mark.parametrize("forward", [torch_state, torch_forked])
def test_draws_that_are_repeated_stay_so(forward):
    net = Net(Block(forward))
    model = converted(net)
    assert blocks(model) == 1
    for _ in range(2):
        seeded()
        expected, after = net(IMAGES), next_draws()
        seeded()
        torch.testing.assert_close(on(model, IMAGES), expected, rtol=1e-4, atol=1e-5)
        assert next_draws() == after


def test_no_draw_of_another_thread_comes_twice():
    drawn, stop = [], threading.Event()

    def draw():
        while not stop.is_set():
            drawn.append(next_draws())

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for forward in (torch_rand, python, numpy, dropout):
            net = Net(Block(forward))
            dc.dynamize(net, 2, split="exact", input_size=(8, 16, 16), where="blocks.1")
    finally:
        stop.set()
        thread.join()
    for numbers in list(zip(*drawn, strict=True))[1:]:  # of 53 bits; chance repeats none
        assert len(set(numbers)) == len(numbers)
    pairs = [(a[0], b[0]) for a, b in itertools.pairwise(drawn)]
    assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("forward", [torch_rand, torch_seeded, dropout])
def test_the_generator_of_the_process_is_not_borrowed(forward, monkeypatch):
    """Between its states being exchanged and put back another thread's draws would come twice."""
    monkeypatch.delattr(Draws, "_exchanged")
    dc.dynamize(Net(Block(forward)), 2, split="exact", input_size=(8, 16, 16), where="blocks.1")
