"""Values that a forward reads outside its module: setting one after conversion is told."""

import copy
import functools
import itertools
import os
import re
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from asked_nets import IMAGES, Block, Net, blocks, branch, converted, on
from quick import one_in, slow_unless
from torch import nn

import dmnn_convert as dc
from dmnn_convert.graph.outer import _COMPILES_NAMES
from dmnn_convert.nn import conversion_of

SCALE = 2.0
FACTORS = {"p": 2.0}


def config(self, x):
    return x + branch(self, x) * self.cfg.scale


def config_within(self, x):
    return x + branch(self, x) * self.cfg.inner.scale


def flag(self, x):
    return x + branch(self, x) if self.cfg.flag else x - branch(self, x)


def of_dict(self, x):
    return (x + branch(self, x)) * self.d["p"]


def of_list(self, x):
    return (x + branch(self, x)) * self.numbers[1]


def of_class(self, x):
    return (x + branch(self, x)) * self.factor


def of_globals(self, x):
    return (x + branch(self, x)) * SCALE


def scaled(x):
    return x * SCALE


def of_helper(self, x):
    return scaled(x + branch(self, x))


def of_global_dict(self, x):
    return (x + branch(self, x)) * FACTORS["p"]


def of_environment(self, x):
    return (x + branch(self, x)) * float(os.environ["DMNN_SCALE"])


def of_slots(self, x):
    return (x + branch(self, x)) * self.slots.scale


def of_a_slot_alone(self, x):
    return (x + branch(self, x)) * self.slot.scale


def of_a_private_slot(self, x):
    return (x + branch(self, x)) * self.private.scale


def of_called_object(self, x):
    return self.gain(x + branch(self, x))


def of_a_key_that_is_not_there(self, x):
    return (x + branch(self, x)) * self.d.get("q", 2.0)


def of_all_numbers(self, x):
    return (x + branch(self, x)) * sum(self.numbers)


def activated(self, x):
    return self.act(x + branch(self, x))


def partly(self, x):
    return self.partial(x + branch(self, x))


def of_a_modules_list(self, x):
    for layer in self.layers:
        x = layer(x)
    return x + branch(self, x)


def default(self, x, scale=2.0):
    return (x + branch(self, x)) * scale


def keyword(self, x, *, scale=2.0):
    return (x + branch(self, x)) * scale


def helped(x, scale=2.0):
    return x * scale


def default_of_helper(self, x):
    return helped(x + branch(self, x))


class Slots:
    __slots__ = ("scale",)


class Slot:
    __slots__ = "scale"  # one name, not five letters


class Private:
    __slots__ = ("__scale",)

    @property
    def scale(self):
        return self.__scale

    @scale.setter
    def scale(self, value):
        self.__scale = value


class Gain:
    def __init__(self):
        self.factor = 2.0

    def __call__(self, x):
        return x * self.factor


def made():
    inner = types.SimpleNamespace(scale=2.0)
    return types.SimpleNamespace(scale=2.0, flag=True, inner=inner)


def set_global(monkeypatch, name, value):
    monkeypatch.setattr(sys.modules[__name__], name, value)


CASES = [
    (config, lambda block, _: setattr(block.cfg, "scale", 3.0), "self.cfg.scale is 3.0 now"),
    (
        config_within,
        lambda block, _: setattr(block.cfg.inner, "scale", 3.0),
        "self.cfg.inner.scale",
    ),
    (flag, lambda block, _: setattr(block.cfg, "flag", False), "self.cfg.flag is False"),
    (of_dict, lambda block, _: block.d.update(p=3.0), r"self.d\['p'\] is 3.0"),
    (of_list, lambda block, _: block.numbers.__setitem__(1, 3.0), r"self.numbers is \(1, 3.0\)"),
    (of_class, lambda block, m: m.setattr(source(block), "factor", 3.0), "self.factor is 3.0"),
    (of_globals, lambda _, m: set_global(m, "SCALE", 3.0), "test_outer_values.SCALE is 3.0"),
    (of_helper, lambda _, m: set_global(m, "SCALE", 3.0), "test_outer_values.SCALE is 3.0"),
    (of_dict, lambda block, _: block.d.clear(), r"self.d\['p'\] is <nothing> now"),
    (of_list, lambda block, _: block.numbers.clear(), r"self.numbers is \(\) now"),
    (config, lambda block, _: delattr(block.cfg, "scale"), "self.cfg.scale is <nothing> now"),
    (config, lambda block, _: setattr(block, "cfg", None), "self.cfg.scale is <nothing> now"),
    (of_slots, lambda block, _: setattr(block.slots, "scale", 3.0), "self.slots.scale is 3.0"),
    (of_a_slot_alone, lambda block, _: setattr(block.slot, "scale", 3.0), "self.slot.scale is 3.0"),
    (of_a_private_slot, lambda block, _: setattr(block.private, "scale", 3.0), "self.private.*3.0"),
    (of_called_object, lambda block, _: setattr(block.gain, "factor", 3.0), "self.gain.factor is"),
    (
        of_a_key_that_is_not_there,
        lambda block, _: block.d.update(q=3.0),
        r"self.d\['q'\] is 3.0 now: its value at conversion, None",
    ),
    (of_all_numbers, lambda block, _: block.numbers.append(1), r"self.numbers is \(1, 2.0, 1\)"),
    (
        activated,
        lambda block, _: setattr(block, "act", torch.sigmoid),
        "self.act is torch",
    ),
    (
        partly,
        lambda block, _: setattr(block, "partial", functools.partial(F.leaky_relu)),
        "self.partial.keywords",
    ),
    (
        of_a_modules_list,
        lambda block, _: block.layers.append(nn.Sigmoid()),
        "the length of self.layers is 2 now",
    ),
    (
        default,
        lambda _, m: m.setattr(default, "__defaults__", (3.0,)),
        "the default scale= of default is 3.0",
    ),
    (
        keyword,
        lambda _, m: m.setitem(keyword.__kwdefaults__, "scale", 3.0),
        "the default scale= of keyword is 3.0",
    ),
    (
        default_of_helper,
        lambda _, m: m.setattr(helped, "__defaults__", (3.0,)),
        "the default scale= of helped is 3.0",
    ),
    (of_helper, lambda _, m: set_global(m, "scaled", F.relu), "test_outer_values.scaled is torch"),
    (
        of_globals,
        lambda block, m: m.setattr(source(block), "forward", keyword),
        "Block.forward is test_outer_values.keyword now",
    ),
    (
        of_environment,
        lambda _, m: m.setenv("DMNN_SCALE", "3"),
        r"os.environ\['DMNN_SCALE'\] is '3' now",
    ),
    (of_global_dict, lambda _, m: m.setitem(FACTORS, "p", 3.0), r"FACTORS\['p'\] is 3.0"),
]


def source(block):
    return next(cls for cls in type(block).__mro__ if "factor" in vars(cls))


def net_of(forward):
    block = Block(forward, cfg=made(), d={"p": 2.0}, numbers=[1, 2.0], act=F.relu, slots=Slots())
    block.layers = nn.ModuleList([nn.ReLU()])
    block.slot, block.private, block.gain = Slot(), Private(), Gain()
    for slotted in (block.slots, block.slot, block.private):
        slotted.scale = 2.0
    block.partial = functools.partial(F.leaky_relu, negative_slope=0.5)
    type(block).factor = 2.0
    return Net(block).eval()


@pytest.mark.parametrize(
    ("forward", "change", "said"), one_in(3, CASES), ids=[c[0].__name__ for c in CASES]
)
def test_a_value_that_is_set_afterwards_is_told(forward, change, said, monkeypatch):
    monkeypatch.setenv("DMNN_SCALE", "2")
    net = net_of(forward)
    model = converted(net, verify=False)
    assert blocks(model) == 2
    for each in (model, copy.deepcopy(model)):
        torch.testing.assert_close(on(each, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)
        with monkeypatch.context() as patch:
            change(each.blocks[0], patch)
            with pytest.raises(dc.ConversionError, match=said):
                on(each, IMAGES)


def with_closure(scale, shift, config):
    def shifted(x):
        return x + shift + config["more"]

    def forward(self, x):
        return shifted((x + branch(self, x)) * scale)

    def change(**values):
        nonlocal scale, shift
        scale, shift = values.get("scale", scale), values.get("shift", shift)

    return forward, change


@pytest.mark.parametrize("name", ["scale", "shift"])
def test_a_variable_of_a_closure_that_is_set_afterwards_is_told(name):
    forward, change = with_closure(0.5, 1.0, {"more": 1.0})
    net = Net(Block(forward)).eval()
    model = converted(net)
    assert blocks(model) == 2
    torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)
    change(**{name: 3.0})
    with pytest.raises(dc.ConversionError, match=f"the variable {name} of .* is 3.0 now"):
        on(model, IMAGES)


def test_what_a_closure_holds_is_told_too_and_a_decorator_has_one():
    config = {"factor": 2.0}

    def decorated(function):
        def wrapper(self, x):
            return function(self, x) * config["factor"]

        return wrapper

    net = Net(Block(decorated(flagless))).eval()
    model = converted(net)
    assert blocks(model) == 2
    torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)
    config["factor"] = 3.0
    with pytest.raises(dc.ConversionError, match=r"the variable config of .*\['factor'\] is 3.0"):
        on(model, IMAGES)


def flagless(self, x):
    return x + branch(self, x)


class Inner(Block):
    """A branch; nothing of it is left in a conversion."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def forward(self, x, scale=0.5):
        return branch(self, x) * scale * self.config.scale


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = types.SimpleNamespace(scale=2.0)
        self.inner = Inner(self.config)

    def forward(self, x):
        return x + self.inner(x)


def test_values_of_a_module_that_is_gone_are_guarded_where_others_hold_them(monkeypatch):
    net = Net(Outer()).eval()
    model = converted(net)
    assert not hasattr(model.blocks[0], "inner")
    torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(Inner.forward, "__defaults__", (3.0,))
        with pytest.raises(dc.ConversionError, match=r"default scale= of Inner.forward is 3.0"):
            on(model, IMAGES)
    model.blocks[0].config.scale = 3.0
    with pytest.raises(dc.ConversionError, match=r"self.config.scale is 3.0"):
        on(model, IMAGES)


class Given(Block):
    """A branch whose end is a function of its own, with a closure."""

    def __init__(self, factor=2.0):
        super().__init__()
        self.end = lambda x: x * factor

    def forward(self, x):
        return self.end(branch(self, x))


def given_by_default(x, factor=2.0):
    return x * factor


class Giver:
    factor = 2.0

    def give(self, x):
        return x * self.factor


ENDS = ("closure", "default", "attribute", "partial", "method")


@pytest.mark.parametrize("how", slow_unless(lambda how: how == "closure", ENDS))
def test_what_only_a_module_held_that_a_block_took_apart_is_guarded(how, monkeypatch):
    factor, giver = 2.0, Giver()

    def given_by_a_closure(x):
        return x * factor

    def given_by_an_attribute(x):
        return x * given_by_an_attribute.factor

    given_by_an_attribute.factor = 2.0
    partial = functools.partial(F.leaky_relu, negative_slope=0.5)
    ends = {
        "closure": given_by_a_closure,
        "default": given_by_default,
        "attribute": given_by_an_attribute,
        "partial": partial,
        "method": giver.give,
    }
    outer = Outer()
    outer.inner = Given()
    outer.inner.end = ends[how]
    net = Net(outer).eval()
    expected = net(IMAGES)
    model = converted(net, inplace=True)
    assert blocks(model) == 2
    inner = model.blocks[0].inner  # kept for the check, without its layers
    assert not list(inner.children()) and not list(inner.parameters())
    torch.testing.assert_close(on(model, IMAGES), expected, rtol=1e-4, atol=1e-5)
    plain = dc.freeze(model.eval(), 1.0)
    torch.testing.assert_close(plain(IMAGES), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(given_by_default, "__defaults__", (3.0,))
    partial.keywords["negative_slope"] = giver.factor = given_by_an_attribute.factor = factor = 3.0
    with pytest.raises(dc.ConversionError, match=r"3.0 now: its value at conversion"):
        on(model, IMAGES)


def flag_by_a_helper(self, x):
    return doubled(self, x + branch(self, x))


def doubled(module, x):
    return x * 2 if module.double else x


def test_an_attribute_that_a_helper_reads_is_guarded():
    model = converted(Net(Block(flag_by_a_helper, double=True)))
    with pytest.raises(dc.ConversionError, match=r"Block.double = False"):
        model.blocks[0].double = False


TENSOR, COUNT = torch.full((8, 1, 1), 2.0), itertools.count()


def of_a_global_tensor(self, x):
    return (x + branch(self, x)) * TENSOR


def of_a_listed_tensor(self, x):
    return (x + branch(self, x)) * self.tensors[0]


def of_a_tensor_computed_with(self, x):
    return (x + branch(self, x)) * (self.tensor * 2)


def of_an_iterator(self, x):
    return (x + branch(self, x)) * (2.0 + 0 * next(COUNT))


UNGUARDED = [
    (of_a_global_tensor, "test_outer_values.TENSOR, a tensor that is not a buffer"),
    (of_a_listed_tensor, r"self.tensors\[0\], a tensor that is not a buffer"),
    (of_a_tensor_computed_with, "self.tensor, a tensor that is not a buffer"),
    (of_an_iterator, "test_outer_values.COUNT, an iterator"),
]


@pytest.mark.parametrize(("forward", "why"), UNGUARDED, ids=[c[0].__name__ for c in UNGUARDED])
def test_what_no_check_would_show_keeps_the_block_dense(forward, why, caplog):
    net = Net(Block(forward, tensors=[TENSOR.clone()], tensor=TENSOR.clone())).eval()
    model = converted(net)
    assert blocks(model) == 1
    reasons = conversion_of(model).left
    assert re.search(rf"\(test_outer_values.py:\d+\) reads {why}", reasons["blocks.0"])


def test_a_number_and_an_equal_flag_are_two_values():
    for value in (1, True, 1.0):
        block = Block(of_dict, d={"p": value})
        model = converted(Net(block))
        on(model, IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize("forward", [config, of_globals, of_helper])
def test_the_check_compiles_whole(forward, monkeypatch):
    net = net_of(forward)
    model = converted(net)
    dc.set_execution(model, "masked")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with dc.force_gates(model, True):
        got = compiled(IMAGES)
    torch.testing.assert_close(got, net(IMAGES), rtol=1e-4, atol=1e-5)
    if forward is of_helper and _COMPILES_NAMES:
        set_global(monkeypatch, "scaled", F.relu)
        with dc.force_gates(model, True), pytest.raises(Exception, match="scaled is <nothing> now"):
            compiled(IMAGES)


def test_a_parameter_that_a_block_reads_itself_is_no_value_from_elsewhere():
    class Scaled(Block):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.full((8, 1, 1), 0.5))

        def forward(self, x):
            return x + self.w * self.b(F.relu(self.a(x)))

    net = nn.Sequential(Scaled(), Scaled()).eval()
    blocks = dc.find_blocks(net, (8, 16, 16))
    assert [block.reason for block in blocks] == [None, None]
    model, _ = dc.dynamize(net, 2, split="exact", input_size=(8, 16, 16))
    x = torch.randn(2, 8, 16, 16)
    with dc.force_gates(model, True):
        torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-5)
