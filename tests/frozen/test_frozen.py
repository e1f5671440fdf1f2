"""Frozen networks: equal to the model under the same gates, at the table's cost, plain layers."""

import copy
import itertools
import pickle

import pytest
import timm
import torch
from block_nets import OF_EACH_KIND, TYPES, build, size_of
from nets import images, off_by
from norms import draw_norms, uniform
from quick import slow_unless
from small_nets import NETS, seasoned
from torch import nn

from dmnn_convert import ArgumentError, GateMismatchError, dynamize, force_gates
from dmnn_convert.dryrun import measure
from dmnn_convert.frozen import plain_network
from dmnn_convert.nn import multi_path_blocks

BATCH = 3


def apart(model):
    """Give the sub-blocks' norms statistics of their own, in place, as calibration does."""
    generator = torch.Generator().manual_seed(1)
    return draw_norms(model, {"running_var": uniform(0.5, 2)}, generator)


def check_equal(model, table, frozen, path, x, tolerance=1e-5):
    with torch.no_grad(), force_gates(model, path):
        expected = model(x)
    with torch.no_grad():
        assert off_by(frozen(x), expected) <= tolerance
    own = [m for m in frozen.modules() for c in type(m).__mro__ if "dmnn" in c.__module__]
    assert not own
    macs = measure(frozen, tuple(x.shape[1:])).macs[""]
    assert macs == int(table.network_flops(path[None])) - table.controllers


SPLITS = [(name, "exact") for name in TYPES]
SPLITS += [
    (name, "matched") for name, kind in TYPES.items() if kind.matched not in (None, kind.exact)
]


PATHS = ("101", "111", "110", "000")


@pytest.fixture(scope="module")
def of_one_block(request):
    """Return a model of one block, its table and images; nobody changes them."""
    name, split = request.param
    source = build(name)
    model, table = dynamize(source, 3, split=split, input_size=size_of(name))
    return apart(model), table, images(source, size_of(name), BATCH)


@pytest.mark.parametrize(
    ("of_one_block", "path"),
    slow_unless(
        lambda block, path: (
            block[0] in OF_EACH_KIND and block[1] == "exact" and path in ("100", "110")
        ),
        itertools.product(SPLITS, PATHS),
    ),
    indirect=["of_one_block"],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_paths_of_every_block_type(of_one_block, path):
    model, table, x = of_one_block
    gates = torch.tensor([float(gate) for gate in path])
    if not gates.any() and multi_path_blocks(model)[0].controller.keep_one:
        pytest.skip("one of its sub-blocks always runs")
    check_equal(model, table, plain_network(model, gates), gates, x)


@pytest.mark.parametrize("name", NETS)
def test_layers_have_the_sources_names_and_the_paths_widths(name):
    source = seasoned(NETS[name]())
    model, table = dynamize(source, 2, split="exact", input_size=(3, 8, 8))
    path = torch.tensor([1.0, 0.0] * len(table.blocks))
    frozen = plain_network(model, path)
    theirs, mine = source.state_dict(), frozen.state_dict()
    assert mine.keys() == theirs.keys()
    assert type(frozen) is type(source)
    narrower = [k for k in mine if mine[k].shape != theirs[k].shape]
    assert narrower and all(mine[k].numel() * 2 == theirs[k].numel() for k in narrower)


def test_a_level_of_all_sub_blocks_has_the_sources_shapes_and_function():
    source = seasoned(NETS["basic"]())
    model, table = dynamize(source, 4, split="exact", input_size=(3, 8, 8))
    frozen = plain_network(model, torch.ones(8))
    shapes = {k: v.shape for k, v in source.state_dict().items()}
    assert {k: v.shape for k, v in frozen.state_dict().items()} == shapes
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert off_by(frozen(x), source(x)) <= 1e-5
    assert table.dense_total == measure(frozen, (3, 8, 8)).macs[""]


def test_norms_of_another_scale_each_become_one_norm():
    model, table = dynamize(seasoned(NETS["basic"]()), 2, split="exact", input_size=(3, 8, 8))
    norms = [b.sub_blocks[0].get_submodule(b.tail_norm) for b in multi_path_blocks(model)]
    with torch.no_grad():
        norms[0].weight[:3] = 0  # a scale of zero, which nothing can be divided by
        norms[0].running_var.fill_(0.1)
    frozen = plain_network(model, torch.ones(4))
    check_equal(model, table, frozen, torch.ones(4), torch.randn(2, 3, 8, 8))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in frozen.modules()) == 5


def test_it_is_a_network_like_any_other():
    model, _ = dynamize(seasoned(NETS["inverted"]()), 3, split="exact", input_size=(3, 8, 8))
    path = torch.tensor([1.0, 1.0, 0.0] * 2)
    frozen, x = plain_network(model, path), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = frozen(x)
        for other in (
            pickle.loads(pickle.dumps(frozen)),
            copy.deepcopy(frozen),
            torch.fx.symbolic_trace(frozen),
            torch.export.export(frozen, (x,)).module(),
        ):
            assert torch.equal(other(x), expected)
        again, _ = dynamize(frozen, 2, split="exact", input_size=(3, 8, 8))
        with force_gates(again, True):
            assert off_by(again(x), expected) <= 1e-5
    frozen.train()(x).sum().backward()
    assert all(p.grad is not None for p in frozen.parameters())


@pytest.mark.filterwarnings("ignore:`torch.jit.(script|trace|trace_method)` is")
def test_it_scripts_and_traces():
    model, _ = dynamize(seasoned(NETS["bottleneck"]()), 2, split="exact", input_size=(3, 8, 8))
    frozen, x = plain_network(model, torch.tensor([1.0, 0.0, 0.0, 1.0])), torch.randn(2, 3, 8, 8)
    assert torch.equal(torch.jit.script(frozen)(x), frozen(x))
    assert torch.equal(torch.jit.trace(frozen, x)(x), frozen(x))


def test_the_model_and_its_modes_stay():
    model, _ = dynamize(seasoned(NETS["basic"]()), 2, split="exact", input_size=(3, 8, 8))
    model.train()
    model.b1.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    frozen = plain_network(model, torch.tensor([1.0, 0, 1, 1]))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert frozen.training and not frozen.b1.training and frozen.b2.training
    frozen.fc.weight.data.zero_()
    assert model.fc.weight.abs().sum() > 0


def test_hooks_of_the_user_stay():
    source, seen = seasoned(NETS["basic"]()), []
    model, _ = dynamize(source, 2, split="exact", input_size=(3, 8, 8))
    model.b1.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    plain_network(model, torch.ones(4))(torch.randn(2, 3, 8, 8))
    assert seen == [(2, 8, 8, 8)]


def test_paths_that_cannot_be():
    model, _ = dynamize(seasoned(NETS["inverted"]()), 2, split="exact", input_size=(3, 8, 8))
    with pytest.raises(GateMismatchError, match=r"give gates \(4,\)"):
        plain_network(model, torch.ones(6))
    with pytest.raises(GateMismatchError, match="zeros and ones"):
        plain_network(model, torch.full((4,), 0.5))
    with pytest.raises(GateMismatchError, match="no shortcut"):
        plain_network(model, torch.tensor([1.0, 0, 0, 0]))
    with pytest.raises(ArgumentError, match="convert it first"):
        plain_network(nn.Linear(2, 2), torch.ones(4))


class Given(nn.Module):
    """A block that may be given its shortcut."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x, shortcut=None):
        return self.last(self.first(x).relu()) + (x if shortcut is None else shortcut)


class Giving(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.down, self.block = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), Given()

    def forward(self, x):
        x = self.stem(x)
        return self.block(x, self.down(x))


def test_an_argument_that_was_given_is_not_its_default():
    model, _ = dynamize(Giving().eval(), 2, split="exact", input_size=(3, 8, 8))
    x, path = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 0])
    with torch.no_grad(), force_gates(model, path):
        assert off_by(plain_network(model, path)(x), model(x)) <= 1e-5


@pytest.mark.slow
def test_blocks_that_the_module_around_calls():
    """LCNetV2's blocks begin in one module and end in the next; the stage calls the layers."""
    source = timm.create_model("lcnetv2_small").eval()
    model, table = dynamize(source, 2, split="exact", input_size=(3, 32, 32))
    path = torch.tensor([1.0, 0.0] * len(table.blocks))
    frozen, x = plain_network(model, path), torch.randn(2, 3, 32, 32)
    check_equal(model, table, frozen, path, x)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(frozen)(x), frozen(x))


def doubled(module, args, kwargs, output):
    return 2 * output


def test_a_copy_keeps_hooks_and_a_pickle_says_that_it_would_not():
    model, table = dynamize(seasoned(NETS["basic"]()), 4, split="exact", input_size=(3, 8, 8))
    frozen = plain_network(model.eval(), torch.ones(sum(table.sizes)))
    name = next(n for n, m in frozen.named_modules() if isinstance(m, torch.fx.GraphModule))
    frozen.get_submodule(name).register_forward_hook(doubled, with_kwargs=True)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for again in (copy.deepcopy(frozen), copy.deepcopy(copy.deepcopy(frozen))):
            assert torch.equal(again(x), frozen(x))
    with pytest.raises(TypeError, match=r"torch\.fx would lose"):
        pickle.dumps(frozen)


class OneChannelEach(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(8, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True)
        self.conv2, self.head = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(8, 3)
        self.stem = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv2(self.norm(self.conv1(x)).relu())
        return self.head(x.mean((2, 3)))


def test_norms_of_one_channel_become_one_of_several():
    model, table = dynamize(OneChannelEach().eval(), 4, split="exact", input_size=(3, 8, 8))
    path, x = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.randn(2, 3, 8, 8)
    frozen = plain_network(model, path)
    check_equal(model, table, frozen, path, x)
    assert frozen.norm.num_features == 3
