"""Sub-blocks by importance: the first holds the channels that count most, the function stays."""

import itertools
import json
from pathlib import Path

import block_nets
import pytest
import torch
from nets import NETS, Residual, images, off_by, randomised
from quick import slow_unless
from torch import nn

from dmnn_convert import dynamize, find_blocks, force_gates, load, save, set_execution
from dmnn_convert.io import zoo
from dmnn_convert.nn import conversion_of, multi_path_blocks
from dmnn_convert.split.select import ChannelChoice, strongest_first

SMALL = (3, 8, 8)
CIFAR = f"{Path(__file__).parents[2] / 'examples' / 'cifar_resnet.py'}:resnet20"
ZOO = {
    "resnet18": (3, 64, 64),
    CIFAR: (3, 32, 32),
    "mobilenet_v2": (3, 64, 64),
    "resnext50_32x4d": (3, 64, 64),
    "resnet50": (3, 64, 64),
}


def check_equal(source, size, N):
    model, _ = dynamize(source, N, split="exact", input_size=size, order="importance")
    x = images(source, size)
    with torch.no_grad():
        for execution in ("skip", "masked"):
            set_execution(model, execution)
            with force_gates(model, True):
                assert off_by(model(x), source(x)) <= 1e-4
    return model


@pytest.mark.parametrize(
    ("name", "N"),
    slow_unless(
        lambda name, N: (name, N) == (CIFAR, 3),
        itertools.product(ZOO, (2, 3, 4)),
    ),
    ids=lambda value: str(value).rpartition(":")[2],
)
def test_the_function_stays(name, N):
    size = ZOO[name]
    torch.manual_seed(0)
    source = randomised(zoo.build(name)).eval()
    model = check_equal(source, size, N)
    plain, _ = dynamize(source, N, split="exact", input_size=size)
    ours, theirs = model.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs)
    differ = {k for k in ours if not torch.equal(ours[k], theirs[k]) and ".controller." not in k}
    assert differ
    assert all(ours[k].shape == theirs[k].shape for k in differ)


@pytest.mark.parametrize("name", slow_unless(("chain",).__contains__, NETS))
def test_the_function_of_user_networks_stays(name):
    torch.manual_seed(0)
    check_equal(randomised(NETS[name].build()).eval(), NETS[name].size, 3)


@pytest.mark.parametrize(
    "name", slow_unless(block_nets.OF_EACH_KIND.__contains__, block_nets.TYPES)
)
def test_the_function_of_every_type_of_block_stays(name):
    check_equal(block_nets.build(name), block_nets.size_of(name), 2)


# --- which channels ---------------------------------------------------------------------------


def net(*hidden, width=6, first=None):
    """A residual block whose hidden channels are all alike, until a test says otherwise."""
    convs = (first or nn.Conv2d(4, width, 1), nn.Conv2d(width, 4, 1))
    body = nn.Sequential(convs[0], *hidden, nn.ReLU(), convs[1])
    source = nn.Sequential(nn.Conv2d(3, 4, 1), Residual(body)).eval()
    with torch.no_grad():
        for conv in convs:
            conv.weight.fill_(1.0)
    return source


def held(source, N, order="importance"):
    """Return the hidden channels of each sub-block, told by the biases of the first layer."""
    first = source[1].body[0]
    with torch.no_grad():
        first.bias.copy_(torch.arange(len(first.bias)))
    model, _ = dynamize(source, N, input_size=SMALL, order=order)
    (block,) = multi_path_blocks(model)
    return [sub_block.get_submodule("body.0").bias.tolist() for sub_block in block.sub_blocks]


def test_a_channel_counts_by_its_norms_scale_and_its_readers():
    source = net(nn.BatchNorm2d(6))
    with torch.no_grad():
        source[1].body[1].weight.copy_(torch.tensor([1.0, -5.0, 2.0, 0.5, 3.0, 0.0]))
        source[1].body[3].weight[:, 3] = 9.0  # 0.5 · 9 is more than 3, less than 5
        source[1].body[0].weight[5] = 100.0  # which the norm takes away
    assert held(source, 2) == [[1, 3, 4], [0, 2, 5]]
    assert held(source, 3) == [[1, 3], [2, 4], [0, 5]]
    assert held(source, 4) == [[1, 3], [2, 4], [0], [5]]
    assert held(source, 2, "source") == [[0, 1, 2], [3, 4, 5]]
    model, _ = dynamize(source, 2, input_size=SMALL, order="importance")
    for sub_block, kept in zip(
        multi_path_blocks(model)[0].sub_blocks, held(source, 2), strict=True
    ):
        kept = [int(channel) for channel in kept]
        norm, last = (sub_block.get_submodule(f"body.{i}") for i in (1, 3))
        assert torch.equal(norm.weight, source[1].body[1].weight[kept])
        assert torch.equal(last.weight, source[1].body[3].weight[:, kept])


def test_without_a_norm_it_counts_by_the_weights_that_make_it():
    source = net()
    with torch.no_grad():
        source[1].body[0].weight[4] = 3.0
        source[1].body[0].weight[1] = 2.0
        source[1].body[2].weight[:, 5] = 4.0
    assert held(source, 2) == [[1, 4, 5], [0, 2, 3]]


def test_a_norm_without_a_scale_leaves_it_to_the_readers():
    source = net(nn.BatchNorm2d(6, affine=False))
    with torch.no_grad():
        source[1].body[0].weight[0] = 9.0
        source[1].body[3].weight[:, 5] = 2.0
    assert held(source, 3) == [[0, 5], [1, 2], [3, 4]]


def test_the_norm_that_counts_is_the_one_before_the_readers():
    """What a depthwise convolution reads is normalised again after it."""
    depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
    source = net(nn.BatchNorm2d(6), nn.ReLU(), depthwise, nn.BatchNorm2d(6))
    with torch.no_grad():
        source[1].body[1].weight[0] = 9.0
        source[1].body[4].weight[3] = 2.0
    assert held(source, 3) == [[0, 3], [1, 2], [4, 5]]


def test_groups_stay_whole():
    grouped = nn.Conv2d(6, 6, 1, groups=3)
    source = net(nn.ReLU(), grouped, nn.BatchNorm2d(6))
    with torch.no_grad():
        # Of the groups, the last has the largest channel, the first the largest sum of squares.
        source[1].body[3].weight.copy_(torch.tensor([4.0, 4.0, 1.0, 1.0, 0.0, 5.0]))
    assert held(source, 3) == [[0, 1], [4, 5], [2, 3]]
    assert held(source, 2) == [[0, 1, 4, 5], [2, 3]]


@pytest.mark.parametrize("value", [1.0, float("nan"), float("inf")])
def test_equals_and_what_cannot_be_compared_keep_the_sources_order(value):
    source = net(nn.BatchNorm2d(6))
    with torch.no_grad():
        source[1].body[1].weight[value == 1.0 :] = value
    assert held(source, 2) == [[0, 1, 2], [3, 4, 5]]


def test_slices_of_a_whole_value_stay_runs():
    source = block_nets.build("depthwise_separable")
    size = block_nets.size_of("depthwise_separable")
    states = [
        dynamize(source, 2, input_size=size, order=order).model.state_dict()
        for order in ("source", "importance")
    ]
    assert all(
        torch.equal(v, states[1][k]) for k, v in states[0].items() if ".controller." not in k
    )


def test_another_default_dtype():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        check_equal(randomised(net(nn.BatchNorm2d(6))).eval(), SMALL, 2)
    finally:
        torch.set_default_dtype(before)


# --- narrower bottlenecks ---------------------------------------------------------------------


def test_the_strongest_sets_come_first():
    coupling = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 9], [0, 1, 0]])
    sets = [torch.tensor([0]), torch.tensor([1]), torch.tensor([2])]
    choice = ChannelChoice(
        tuple(sets), (torch.tensor([0]), torch.tensor([1, 3]), torch.tensor([2]))
    )
    found = strongest_first(coupling, choice)
    assert [channels.tolist() for channels in found.first] == [[2], [1], [0]]
    assert [channels.tolist() for channels in found.second] == [[2], [1, 3], [0]]


def test_narrower_bottlenecks_are_the_same_ones_in_another_order():
    torch.manual_seed(0)
    source = randomised(NETS["bottlenecks"].build()).eval()
    assert all(block.split == "matched-width" for block in find_blocks(source))
    made = [
        multi_path_blocks(dynamize(source, 4, input_size=SMALL, order=order).model)
        for order in ("source", "importance")
    ]
    orders = []
    for plain, sorted_ in zip(*made, strict=True):
        keys = [
            [sum(p.sum().item() for p in sub_block.parameters()) for sub_block in block.sub_blocks]
            for block in (plain, sorted_)
        ]
        assert sorted(keys[0]) == sorted(keys[1])
        orders.append(keys[0] == keys[1])
    assert not all(orders)


# --- on disk ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("split", slow_unless({"exact"}.__contains__, ["matched", "exact"]))
def test_a_saved_conversion_comes_back_whatever_its_source_weighs(tmp_path, split):
    """A fresh source has other weights, by which other channels would count most."""
    torch.manual_seed(0)
    arch = "resnet50" if split == "matched" else "resnet18"  # what has widths to match is large
    source = randomised(zoo.build(arch, num_classes=5)).eval()
    size = (3, 32, 32)
    model, _ = dynamize(source, 3, split=split, input_size=size, order="importance")
    save(model, tmp_path, arch=arch, num_classes=5)
    loaded, _ = load(tmp_path)
    assert conversion_of(loaded).config == conversion_of(model).config
    assert conversion_of(loaded).config.order == "importance"
    x = images(source, size)
    with torch.no_grad(), force_gates(model, 0.5), force_gates(loaded, 0.5):
        assert torch.equal(loaded(x), model(x))


def test_older_files_have_the_sources_order(tmp_path):
    model, _ = dynamize(net(nn.BatchNorm2d(6)), 2, input_size=SMALL)
    save(model, tmp_path)
    file = tmp_path / "config.json"
    described = json.loads(file.read_text())
    assert described["conversion"].pop("order") == "source"
    assert described["conversion"]["gate"].pop("certainty") == 0
    file.write_text(json.dumps(described))
    loaded, _ = load(tmp_path, net(nn.BatchNorm2d(6)))
    assert conversion_of(loaded).config == conversion_of(model).config
