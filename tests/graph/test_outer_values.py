"""Values that a forward reads outside its module: setting one after conversion is told."""

import copy
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from test_questions import IMAGES, Block, Net, blocks, converted, on
from torch import nn

import dmnn_convert as dc

SCALE = 2.0
FACTORS = {"p": 2.0}


def branch(self, x):
    return self.b(F.relu(self.a(x)))


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
    (of_global_dict, lambda _, m: m.setitem(FACTORS, "p", 3.0), r"FACTORS\['p'\] is 3.0"),
]


def source(block):
    return next(cls for cls in type(block).__mro__ if "factor" in vars(cls))


def net_of(forward):
    block = Block(forward, cfg=made(), d={"p": 2.0}, numbers=[1, 2.0])
    type(block).factor = 2.0
    return Net(block).eval()


@pytest.mark.parametrize(("forward", "change", "said"), CASES, ids=[c[0].__name__ for c in CASES])
def test_a_value_that_is_set_afterwards_is_told(forward, change, said, monkeypatch):
    net = net_of(forward)
    model = converted(net)
    assert blocks(model) == 2
    for each in (model, copy.deepcopy(model)):
        torch.testing.assert_close(on(each, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)
        with monkeypatch.context() as patch:
            change(each.blocks[0], patch)
            with pytest.raises(dc.ConversionError, match=said):
                on(each, IMAGES)


def test_a_number_and_an_equal_flag_are_two_values():
    for value in (1, True, 1.0):
        block = Block(of_dict, d={"p": value})
        model = converted(Net(block))
        on(model, IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize("forward", [config, of_globals])
def test_the_check_compiles_whole(forward):
    net = net_of(forward)
    model = converted(net)
    dc.set_execution(model, "masked")
    with dc.force_gates(model, True):
        got = torch.compile(model, fullgraph=True, backend="eager")(IMAGES)
    torch.testing.assert_close(got, net(IMAGES), rtol=1e-4, atol=1e-5)


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
