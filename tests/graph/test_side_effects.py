"""Side effects of a forward survive conversion, and tracing leaves none behind."""

import gc
import threading
import types
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from quick import slow_unless
from torch import fx, nn

import dmnn_convert as dc
from dmnn_convert.graph.holders import same, state_of


class Thing:
    """Another object."""


class Block(nn.Module):
    last = None

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.outputs, self.slots, self.thing = {"o": None}, [None], Thing()

    def keep(self, y):
        pass

    def forward(self, x):
        y = self.b(F.relu(self.a(x)))
        self.keep(y)
        return x + y


class Net(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second, self.plain = block(), block(), Block()

    def forward(self, x):
        return self.plain(self.second(self.first(self.stem(x))))


GLOBAL_LIST, GLOBAL_DICT, GLOBAL_THING, GLOBAL = [], {"o": None}, Thing(), None
HELPERS, OTHERS, LOCAL = types.ModuleType("helpers"), nn.Module(), threading.local()
HELPERS.kept = []


def in_a_dict(self, y):
    self.outputs["o"] = y


def in_a_place_of_a_list(self, y):
    self.slots[0] = y


def on_an_object(self, y):
    self.thing.y = y


def on_a_layer(self, y):
    self.a.y = y


def on_the_class(self, y):
    type(self).last = y


def in_a_global_list(self, y):
    GLOBAL_LIST.append(y)


def in_a_global_dict(self, y):
    GLOBAL_DICT["o"] = y


def on_a_global_object(self, y):
    GLOBAL_THING.y = y


def in_a_global(self, y):
    global GLOBAL
    GLOBAL = y


def by_a_function(y):
    by_a_function.last = y


def on_a_function(self, y):
    by_a_function(y)


def on_another_module(self, y):
    HELPERS.last = y


def in_another_modules_list(self, y):
    HELPERS.kept.append(y)


def in_a_default(self, y, *, kept=[None]):  # noqa: B006
    kept[0] = y


def on_somebody_elses_layer(self, y):
    OTHERS.y = y


def in_a_thread_local(self, y):
    LOCAL.y = y


FOUND = {
    in_a_dict: lambda m: m.outputs["o"],
    in_a_place_of_a_list: lambda m: m.slots[0],
    on_an_object: lambda m: getattr(m.thing, "y", None),
    on_a_layer: lambda m: getattr(m.a, "y", None),
    on_the_class: lambda m: type(m).last,
    in_a_global_list: lambda m: GLOBAL_LIST[-1] if GLOBAL_LIST else None,
    in_a_global_dict: lambda m: GLOBAL_DICT["o"],
    on_a_global_object: lambda m: getattr(GLOBAL_THING, "y", None),
    in_a_global: lambda m: GLOBAL,
    on_a_function: lambda m: getattr(by_a_function, "last", None),
    on_another_module: lambda m: getattr(HELPERS, "last", None),
    in_another_modules_list: lambda m: HELPERS.kept[-1] if HELPERS.kept else None,
    in_a_default: lambda m: in_a_default.__kwdefaults__["kept"][0],
    on_somebody_elses_layer: lambda m: getattr(OTHERS, "y", None),
}


@pytest.fixture(autouse=True)
def clean():
    yield
    globals()["GLOBAL"] = GLOBAL_DICT["o"] = None
    GLOBAL_LIST.clear()
    vars(GLOBAL_THING).clear()
    HELPERS.kept.clear()
    for holder, name in ((by_a_function, "last"), (HELPERS, "last"), (OTHERS, "y"), (LOCAL, "y")):
        vars(holder).pop(name, None)


QUICK = (in_a_dict, on_the_class, in_a_global_list, in_a_default)


@pytest.mark.parametrize(
    "keep", slow_unless(QUICK[:1].__contains__, FOUND), ids=lambda keep: keep.__name__
)
def test_what_a_forward_stores_is_stored_by_the_converted_model_and_by_no_trace(keep):
    source = Net(type("Keeping", (Block,), {"keep": keep})).eval()
    model = dc.dynamize(source, 2, split="exact", input_size=(3, 8, 8)).model
    blocks = {block.name: block for block in dc.find_blocks(source)}
    assert "side effect" in blocks["first"].reason
    assert blocks["plain"].reason is None
    assert FOUND[keep](source.first) is None
    gc.collect()
    assert not [x for x in gc.get_objects() if type(x).__mro__[-2] is fx.Proxy]
    with dc.force_gates(model, True):
        model(torch.randn(1, 3, 8, 8))
    assert isinstance(FOUND[keep](model.first), torch.Tensor)


def test_what_was_stored_before_is_there_after_a_trace():
    GLOBAL_LIST.append("mine")
    GLOBAL_DICT["o"] = "mine"
    for keep in (in_a_global_list, in_a_global_dict):
        dc.find_blocks(Net(type("Keeping", (Block,), {"keep": keep})))
    assert GLOBAL_LIST == ["mine"] and GLOBAL_DICT == {"o": "mine"}


def test_what_is_kept_where_nobody_looks_is_noticed():
    source = Net(type("Keeping", (Block,), {"keep": in_a_thread_local}))
    blocks = {block.name: block for block in dc.find_blocks(source)}
    assert "its forward keeps a value" in blocks["second"].reason
    assert "test_side_effects.py:" in blocks["second"].reason
    assert blocks["plain"].reason is None


def test_a_dict_is_looked_at_as_it_is_whatever_its_class_makes_of_it():
    class Makes(OrderedDict):  # as transformers keeps its activations
        def __getitem__(self, key):
            raise TypeError("makes one each time")

    held = Makes(a=1)
    state = state_of(held)
    assert state == {"a": 1}
    dict.__setitem__(held, "a", 2)
    assert not same(state_of(held), state)


class Makers(OrderedDict):
    """A registry that makes what it is asked for, as transformers' activations are."""

    def __getitem__(self, name):
        return super().__getitem__(name)()


MAKERS = Makers(relu=nn.ReLU)


def test_a_registry_that_makes_what_it_is_asked_for_stays_as_it_was():
    class Asking(Block):
        def forward(self, x):
            return (
                x + self.b(MAKERS["relu"]()(self.a(x))) if "elu" in MAKERS else super().forward(x)
            )

    dc.dynamize(Net(Asking), input_size=(3, 8, 8))
    assert dict.__getitem__(MAKERS, "relu") is nn.ReLU


class Counting(nn.Module):
    """A container that is an argument's default counts the calls."""

    def __init__(self):
        super().__init__()
        self.block, self.other = Block(), Block()

    def forward(self, x, calls={}):  # noqa: B006
        calls["n"] = calls.get("n", 0) + 1
        return (x + self.other.b(F.relu(self.other.a(x)))) * calls["n"] + self.block(x)


class Collecting(Counting):
    """One that holds something already."""

    def forward(self, x, calls=[1]):  # noqa: B006
        calls.append(2)
        return (x + self.other.b(F.relu(self.other.a(x)))) * sum(calls)


@pytest.mark.parametrize("kind", [Counting, Collecting])
def test_a_default_that_lasts_from_call_to_call(kind):
    found = dc.find_blocks(kind().eval(), (8, 16, 16))
    assert [block.name for block in found if not block.reason] in ([], ["block"])


def test_a_model_that_counts_its_calls_in_a_default_goes_on_counting():
    net, x = Counting().eval(), torch.randn(1, 8, 16, 16)
    expected = []
    for _ in range(2):
        expected.append(net(x))
    Counting.forward.__defaults__[0].clear()
    model, table = dc.dynamize(net, 2, split="exact", input_size=(8, 16, 16), verify=False)
    assert table.blocks == ("block",)
    Counting.forward.__defaults__[0].clear()
    with dc.force_gates(model, True):
        for each in expected:
            torch.testing.assert_close(model(x), each, rtol=1e-4, atol=1e-5)
