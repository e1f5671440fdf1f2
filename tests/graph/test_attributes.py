"""Plain attributes take effect after conversion, or setting them is an error."""

import copy
import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from asked_nets import IMAGES, Block, Net, blocks, converted, on
from torch import nn

import dmnn_convert as dc


def check_live(net, model, name, value):
    for each in (net, model):
        setattr(each.blocks[0], name, value)
    torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)


def after(self, x):
    return self.value * (x + self.b(F.relu(self.a(x))))


def width(self, x):
    rest = torch.cat([x[:, : self.value] + 0, x[:, self.value :] * 2], 1)
    return rest + self.b(F.relu(self.a(x)))


def dropout(self, x):
    return F.dropout(x, self.value, True) + self.b(F.relu(self.a(x)))


@pytest.mark.parametrize(
    ("forward", "old", "new"),
    [(after, 0.5, 3.0), (after, 2, 5), (width, 4, 2), (dropout, 0.9, 0.0)],
)
def test_numbers_that_an_operation_reads_are_read_again(forward, old, new):
    net = Net(Block(forward, value=old)).eval()
    model = converted(net)
    assert blocks(model) == 2
    check_live(net, copy.deepcopy(model), "value", new)
    check_live(net, model, "value", new)


def inside(self, x):
    return x + self.value * self.b(F.relu(self.a(x)))


def computed(self, x):
    return (self.value * 2 + 1) * (x + self.b(F.relu(self.a(x))))


def decides(self, x):
    if self.value:
        x = x * 2
    return x + self.b(F.relu(self.a(x)))


def names(self, x):
    return (x * 0.5 if self.value == "half" else x) + self.b(F.relu(self.a(x)))


def counts(self, x):
    for _ in range(self.value):
        x = x * 1.5
    return x + self.b(F.relu(self.a(x)))


def _helped(self, x):
    return self.more(x) + self.b(F.relu(self.a(x)))


@pytest.mark.parametrize(
    ("forward", "old", "new"),
    [
        (inside, 0.5, 3.0),
        (computed, 0.5, 3.0),
        (decides, True, False),
        (decides, None, True),
        (names, "half", "full"),
        (counts, 1, 2),
    ],
)
def test_setting_what_is_built_in_is_an_error(forward, old, new):
    net = Net(Block(forward, value=old)).eval()
    model = converted(net)
    assert blocks(model) == 2
    for each in (model, copy.deepcopy(model)):
        with pytest.raises(dc.ConversionError, match="built into the converted forward"):
            each.blocks[0].value = new
        each.blocks[0].value = old
        each.blocks[0].other = new
        torch.testing.assert_close(on(each, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_method_that_the_forward_calls_is_looked_into():
    block = Block(_helped, value=True)
    type(block).more = lambda self, x: x * 2 if self.value else x
    model = converted(Net(block))
    with pytest.raises(dc.ConversionError, match="built into"):
        model.blocks[0].value = False


def test_the_module_inside_is_guarded_too():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.kept, self.scale = nn.Conv2d(8, 8, 1), 0.5

        def forward(self, x):
            return self.kept(x), self.b(F.relu(self.a(x))) * self.scale

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Branch()

        def forward(self, x):
            shortcut, branch = self.inner(x)
            return shortcut + branch

    net = Net(Outer()).eval()
    model = converted(net)
    torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)
    assert blocks(model) == 2
    with pytest.raises(dc.ConversionError, match=r"Branch\.scale = 3\.0"):
        model.blocks[0].inner.scale = 3.0


def test_dropout_layers_inside_sub_blocks_are_live():
    class Dropping(Block):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return x + self.b(self.drop(F.relu(self.a(x))))

    net = Net(Dropping())
    model = converted(net)
    for each in (net, model):
        for module in each.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)


def test_an_attribute_that_its_own_forward_replaces():
    class Moved(Block):
        def forward(self, x):
            self.mean = self.mean.type_as(x)
            return x - self.mean + self.b(F.relu(self.a(x)))

    net = Net(Moved(mean=torch.ones(1, 8, 1, 1))).eval()
    model = converted(net)
    assert type(net.blocks[0].mean) is torch.Tensor
    torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)
    assert blocks(model) == 1


class Reading(nn.Module):
    """Reads an attribute of a module whose own forward it only calls."""

    def __init__(self, read):
        super().__init__()
        self.inner, self.drop = Block(after, value=1.0), nn.Dropout(0.0)
        self.inner.gain, self.mask, self.read = 1.0, torch.ones(1), read
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.read(self, self.inner(x))


def gain(self, x):
    return x * self.inner.gain + 0 * self.b(F.relu(self.a(x)))


def rate(self, x):
    return F.dropout(x + self.b(F.relu(self.a(x))), self.drop.p, True)


def doubled(self, x):
    x = x * (self.inner.gain * 2)
    return x + self.b(F.relu(self.a(x)))


def mask(self, x):
    return x + self.mask * self.b(F.relu(self.a(x)))


def width_of_a_layer(self, x):
    return (x + self.b(F.relu(self.a(x)))) * self.a.out_channels


@pytest.mark.parametrize(("read", "name"), [(gain, "inner.gain"), (rate, "drop.p")])
def test_attributes_of_other_modules_are_read_again(read, name):
    net = Net(Reading(read)).eval()
    model = converted(net)
    for each in (net, model):
        path, _, attribute = name.rpartition(".")
        setattr(each.blocks[0].get_submodule(path), attribute, 1.0 if name == "drop.p" else 3.0)
    torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("read", "name"), [(doubled, "inner.gain"), (mask, "mask")])
def test_what_is_built_in_of_other_modules_and_tensors_is_guarded(read, name):
    model = converted(Net(Reading(read)).eval()).blocks[0]
    path, _, attribute = name.rpartition(".")
    with pytest.raises(dc.ConversionError, match="built into"):
        setattr(model.get_submodule(path), attribute, 2.0)


def test_an_attribute_of_a_layer_that_a_block_takes_along():
    net = Net(Reading(width_of_a_layer)).eval()
    model = converted(net)
    assert blocks(model) == 3
    torch.testing.assert_close(on(model, IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)


def test_numbers_of_numpy_are_numbers():
    net = Net(Block(after, value=np.float64(0.5))).eval()
    torch.testing.assert_close(on(converted(net), IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)


class Sequence(nn.Module):
    """A block whose layers stand in a container, of which one stays."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.ReLU())
        self.last = nn.Conv2d(8, 8, 1)
        self.register_buffer("gain", torch.tensor(2.0))
        self.plain = torch.tensor(2.0)

    def forward(self, x):
        norm, conv, act = self.layers
        x = norm(x)
        return x + self.last(act(conv(x))) * self.gain * self.plain


TAKEN = [
    ("last", lambda: nn.Conv2d(8, 8, 1)),
    ("gain", lambda: torch.tensor(3.0)),
    ("plain", lambda: torch.tensor(3.0)),
    ("layers.2", nn.SiLU),
]


@pytest.mark.parametrize(("name", "made"), TAKEN)
def test_another_layer_or_tensor_in_the_place_of_one_that_a_block_took_is_an_error(name, made):
    model = converted(Net(Sequence()))
    assert blocks(model) == 2
    for each in (model, copy.deepcopy(model)):
        holder, _, own = f"blocks.0.{name}".rpartition(".")
        assert not hasattr(each.get_submodule(holder), own)
        with pytest.raises(dc.ConversionError, match="what it was at conversion is built into"):
            setattr(each.get_submodule(holder), own, made())


def put_together(self, x):
    return x + getattr(self, f"scale_{len(x.shape)}") * self.b(F.relu(self.a(x)))


def of_vars(self, x):
    return x + vars(self)["scale_4"] * self.b(F.relu(self.a(x)))


def of_its_dict(self, x):
    return x + self.__dict__.get("scale_4") * self.b(F.relu(self.a(x)))


def by_a_getter(self, x):
    return x + operator.attrgetter("scale_4")(self) * self.b(F.relu(self.a(x)))


@pytest.mark.parametrize("forward", [put_together, of_vars, of_its_dict, by_a_getter])
def test_an_attribute_that_a_string_names_is_guarded(forward):
    model = converted(Net(Block(forward, scale_4=2.0, scale_2=1.0)))
    with pytest.raises(dc.ConversionError, match=r"Block\.scale_4 = 3\.0: its value"):
        model.blocks[0].scale_4 = 3.0
