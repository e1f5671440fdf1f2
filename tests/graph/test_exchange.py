"""Converting in one thread disturbs no other."""

import builtins
import threading

import pytest
import torch
from asked_nets import IMAGES, Block, Net, blocks, converted, on
from torch import fx, nn

from dmnn_convert.graph import keeping_methods, trace

FUNCTIONS = ((nn.Module, "__call__"), (nn.Module, "__getattr__"), (builtins, "isinstance"))


class Hammer(threading.Thread):
    """Runs a model again and again, and keeps what goes wrong."""

    def __init__(self):
        super().__init__()
        self.model, self.stop = nn.Sequential(Block(), nn.Dropout(0.5), Block()), threading.Event()
        self.wrong, self.passes, self.ready = [], 0, threading.Event()

    def run(self):
        try:
            while not self.stop.is_set():
                out = self.model(IMAGES)
                if not isinstance(out, torch.Tensor) or torch.is_grad_enabled() is not True:
                    self.wrong.append(type(out))
                self.passes += 1
                self.ready.set()
        except Exception as error:
            self.wrong.append(error)
            self.ready.set()


@pytest.fixture
def hammer():
    thread = Hammer()
    thread.start()
    thread.ready.wait()
    yield thread
    thread.stop.set()
    thread.join()


def test_other_threads_run_their_own_models(hammer):
    before = [getattr(holder, name) for holder, name in FUNCTIONS]
    model = converted(Net(Block()))
    assert hammer.wrong == [] and hammer.passes > 0
    assert blocks(model) == 2
    assert [getattr(holder, name) for holder, name in FUNCTIONS] == before


def test_threads_that_convert_at_once_leave_nothing_behind():
    before = [getattr(holder, name) for holder, name in FUNCTIONS]
    nets = [Net(Block()).eval() for _ in range(3)]
    models, wrong = {}, []

    def convert(i):
        try:
            models[i] = converted(nets[i])
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=convert, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert [getattr(holder, name) for holder, name in FUNCTIONS] == before
    for i, net in enumerate(nets):
        torch.testing.assert_close(on(models[i], IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_trace_that_fails_puts_everything_back():
    before = [getattr(holder, name) for holder, name in FUNCTIONS]

    class Fails(nn.Module):
        def forward(self, x):
            raise KeyError("no")

    with pytest.raises(Exception, match=r"no residual|does not run"):
        converted(nn.Sequential(Fails()))
    assert [getattr(holder, name) for holder, name in FUNCTIONS] == before


def test_between_two_traces_the_methods_are_anybodys():
    before = [getattr(holder, name) for holder, name in FUNCTIONS]
    net, plain = Net(Block()), nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with keeping_methods():
        traced = [trace(net, IMAGES.shape[1:]) for _ in range(2)]
        assert [n.op for n in fx.symbolic_trace(plain).graph.nodes].count("call_module") == 2
        with keeping_methods():  # one conversion within another
            traced.append(trace(net, IMAGES.shape[1:]))
        assert nn.Module.__call__ is not before[0]
    assert [getattr(holder, name) for holder, name in FUNCTIONS] == before
    kinds = [
        [(n.op, str(n.target)) for n in t.graph.nodes] for t in (*traced, trace(net, (8, 16, 16)))
    ]
    assert kinds[0] == kinds[1] == kinds[2] == kinds[3]


def test_a_method_that_is_replaced_meanwhile_stays_replaced(monkeypatch):
    net, calls = Net(Block()), []
    alone = len(trace(net, IMAGES.shape[1:]).graph.nodes)
    monkeypatch.setattr(nn.Module, "__call__", nn.Module.__call__)  # restored after the test
    with keeping_methods():
        call = nn.Module.__call__

        def counted(module, *args, **kwargs):
            calls.append(type(module))
            return call(module, *args, **kwargs)

        nn.Module.__call__ = counted
        assert len(trace(net, IMAGES.shape[1:]).graph.nodes) == alone
    assert nn.Module.__call__ is counted
    calls.clear()
    with torch.no_grad():
        assert net(IMAGES).shape == IMAGES.shape
    assert calls.count(nn.Conv2d) > 0
