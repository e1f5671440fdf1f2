"""Values inside classes, containers, arrays and objects: setting one after conversion is told."""

import argparse
import collections
import copy
import ctypes
import threading
import types
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
import pytest
import torch
from asked_nets import IMAGES, Block, Net, blocks, branch, converted, on
from quick import slow_unless

import dmnn_convert as dc
from dmnn_convert.nn import conversion_of


class Settings:
    scale, table = 2.0, {"s": 2.0}

    class Inner:
        scale = 2.0

    @classmethod
    def of_class(cls):
        return cls.scale

    @staticmethod
    def of_nobody():
        return Settings.table["s"]


class Heir(Settings):
    pass


class Finds:
    def __init__(self):
        self.held = {"scale": 2.0}

    def __getattr__(self, name):
        return self.__dict__["held"][name]


class Asks:
    def get(self):
        return NUMBER

    def __call__(self):
        return NUMBER


class Made:
    def __init__(self):
        self.number = NUMBER


class Pair(NamedTuple):
    scale: float = 2.0


NUMBER, INSTANCE, FINDS, ASKS = 2.0, Settings(), Finds(), Asks()
ARGUMENTS, C_NUMBER, ARRAY = argparse.Namespace(scale=2.0), ctypes.c_double(2.0), np.array([2.0])
CHAIN, USERS = collections.ChainMap({"s": 2.0}), collections.UserDict(s=2.0)
QUEUE, SET, PAIRS = collections.deque([2.0]), {2.0}, {"pair": Pair()}
BEHIND = {"s": 2.0}
PROXY, DEEP = types.MappingProxyType(BEHIND), {"a": {"b": {"c": {"s": 2.0}}}}
LOCAL, TASKS = threading.local(), ContextVar("tasks", default=2.0)
LOCAL.scale = 2.0


def set_number(patch):
    patch.setitem(globals(), "NUMBER", 3.0)


CASES = {
    "a class": (lambda: Settings.scale, lambda m: m.setattr(Settings, "scale", 3.0)),
    "an instance": (lambda: INSTANCE.scale, lambda m: m.setattr(Settings, "scale", 3.0)),
    "own": (lambda: INSTANCE.scale, lambda m: m.setattr(INSTANCE, "scale", 3.0)),
    "an heir": (lambda: Heir.scale, lambda m: m.setattr(Settings, "scale", 3.0)),
    "a class within": (
        lambda: Settings.Inner.scale,
        lambda m: m.setattr(Settings.Inner, "scale", 3),
    ),
    "a class method": (lambda: Settings.of_class(), lambda m: m.setattr(Settings, "scale", 3.0)),
    "a static one": (lambda: Settings.of_nobody(), lambda m: m.setitem(Settings.table, "s", 3.0)),
    "found": (lambda: FINDS.scale, lambda m: m.setitem(FINDS.held, "scale", 3.0)),
    "a method's global": (lambda: ASKS.get(), set_number),
    "a call's global": (lambda: ASKS(), set_number),
    "a maker's global": (lambda: Made().number, set_number),
    "arguments": (lambda: ARGUMENTS.scale, lambda m: m.setattr(ARGUMENTS, "scale", 3.0)),
    "a number of C's": (lambda: C_NUMBER.value, lambda m: m.setattr(C_NUMBER, "value", 3.0)),
    "asked": (
        lambda: getattr(ARGUMENTS, "scale", 1.0),
        lambda m: m.setattr(ARGUMENTS, "scale", 3.0),
    ),
    "absent": (
        lambda: getattr(ARGUMENTS, "other", 1.0),
        lambda m: m.setattr(ARGUMENTS, "other", 3.0, raising=False),
    ),
    "a chain": (lambda: CHAIN["s"], lambda m: m.setitem(CHAIN.maps[0], "s", 3.0)),
    "a dict of the user's": (lambda: USERS["s"], lambda m: m.setitem(USERS.data, "s", 3.0)),
    "a queue": (
        lambda: QUEUE[0],
        lambda m: m.setitem(globals(), "QUEUE", collections.deque([3.0])),
    ),
    "a set": (lambda: max(SET), lambda m: m.setitem(globals(), "SET", {2.0, 3.0})),
    "a named tuple": (lambda: PAIRS["pair"].scale, lambda m: m.setitem(PAIRS, "pair", Pair(3.0))),
    "a proxy": (lambda: PROXY["s"], lambda m: m.setitem(BEHIND, "s", 3.0)),
    "deep": (lambda: DEEP["a"]["b"]["c"]["s"], lambda m: m.setitem(DEEP["a"]["b"]["c"], "s", 3.0)),
}
QUICK = ("a class", "a method's global", "absent")


def reading(self, x):
    return (x + branch(self, x)) * self.read()


@pytest.mark.parametrize("name", slow_unless(lambda name: name in QUICK, CASES))
def test_what_is_set_afterwards_is_told(name, monkeypatch):
    read, change = CASES[name]
    net = Net(Block(reading, read=read)).eval()
    model = converted(net)
    assert blocks(model) == 2
    torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)
    change(monkeypatch)
    was = "it did not exist" if name == "absent" else "its value"
    with pytest.raises(dc.ConversionError, match=rf"3(.0)?\W* now: {was} at conversion"):
        on(model, IMAGES)


REFUSED = {
    "LOCAL, which differs between threads": lambda: LOCAL.scale,
    "TASKS, which differs between threads": lambda: TASKS.get(),
    "ARRAY, a NumPy array": lambda: float(ARRAY[0]),
}


def of_attributes(self, x):
    y = x + branch(self, x) if getattr(self, "adds", False) else x - branch(self, x)
    return y * getattr(self, "gain", 2.0)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("adds", False, "its value at conversion, True, is built into"),
        ("gain", 3.0, "it did not exist at conversion, and that is built into"),
    ],
)
def test_an_attribute_that_is_asked_for_by_its_name_is_told(name, value, said):
    net = Net(Block(of_attributes, adds=True)).eval()
    model = converted(net)
    assert blocks(model) == 2
    torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)
    for each in (model, copy.deepcopy(model)):
        with pytest.raises(dc.ConversionError, match=f"Block.{name} = {value}: {said}"):
            setattr(each.blocks[0], name, value)


@pytest.mark.parametrize("why", REFUSED, ids=lambda why: why.partition(",")[0])
def test_what_no_check_would_show_keeps_the_block_dense(why):
    model = converted(Net(Block(reading, read=REFUSED[why])).eval())
    assert blocks(model) == 1
    assert why in conversion_of(model).left["blocks.0"]
