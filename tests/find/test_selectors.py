"""Blocks are chosen by name, kind, stage and depth, and get the number of sub-blocks they ask for.

A selector that selects nothing or makes no sense raises an error that lists what there is.
"""

import logging

import pytest
import torch
from nets import NETS, images, off_by, randomised
from small_nets import IMAGE, basic, basic_net, bottleneck_net
from torch import nn
from torchvision import models

from dmnn_convert import DMNNLoss, dynamize, find_blocks, force_gates, record_paths
from dmnn_convert.errors import ArgumentError, NoBlocksFoundError
from dmnn_convert.find import select
from dmnn_convert.find.selectors import sub_blocks
from dmnn_convert.nn import conversion_of, multi_path_blocks

SIZE = (3, 32, 32)


@pytest.fixture(scope="module")
def resnet():
    return randomised(models.resnet18(num_classes=5)).eval()


@pytest.fixture(scope="module")
def found(resnet):
    return find_blocks(resnet)


def layers(*names):
    return [f"layer{i}.{j}" for i in map(int, names) for j in (0, 1)]


def chosen(found, where=None, N=2):
    return [choice.block.name for choice in select(found, where, N)]


# --- where ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (None, layers(1, 2, 3, 4)),
        ("layer[34].*", layers(3, 4)),
        (("layer4.1", "layer1.0"), ["layer1.0", "layer4.1"]),
        ("kind:basic", layers(1, 2, 3, 4)),
        ("kind:b*", layers(1, 2, 3, 4)),
        ("stage:2", layers(2)),
        ("stage:2-3", layers(2, 3)),
        ("stage:3-", layers(3, 4)),
        ("stage:-2", layers(1, 2)),
        ("stage:4-9", layers(4)),
        ("depth:1", ["layer1.0"]),
        ("depth:2-3", ["layer1.1", "layer2.0"]),
        ("depth:7-", layers(4)),
        (["stage:4", "layer1.*"], layers(1, 4)),
        ("!stage:1", layers(2, 3, 4)),
        ("!layer1.*", layers(2, 3, 4)),
        (["!stage:1", "!layer4.1"], [*layers(2, 3), "layer4.0"]),
        (["stage:3-", "!layer4.1"], [*layers(3), "layer4.0"]),
        (["!layer4.1", "stage:3-"], [*layers(3), "layer4.0"]),
        (lambda block: block.stage == 2 and block.depth > 3, ["layer2.1"]),
    ],
)
def test_blocks_are_selected(found, where, names):
    assert chosen(found, where) == names


def test_kinds_are_told_apart():
    net = randomised(NETS["chain"].build())
    kinds = {block.kind for block in find_blocks(net) if block.reason is None}
    assert "inverted-residual" in kinds
    _, table = dynamize(net, where="kind:inverted-*", input_size=NETS["chain"].size)
    expected = [b.name for b in find_blocks(net) if b.kind.startswith("inverted-")]
    assert list(table.blocks) == expected


BAD = {
    "layer9.*": r"no block matches 'layer9\.\*'.*layer1\.0.*kinds: basic; stages 1-4; depths 1-8",
    "kind:bottleneck": "'kind:bottleneck'.*kinds: basic",
    "stage:5": "'stage:5'.*stages 1-4",
    "depth:9-": "'depth:9-'.*depths 1-8",
    "!layer9.*": "'layer9",
    "block:2": "unknown prefix 'block'.*kind:, stage: and depth:",
    **dict.fromkeys(
        ("stage:", "stage:-", "stage:0", "stage:3-2", "stage:two", "stage:1,2"),
        "is not a range; it counts from 1: stage:2, stage:2-4, stage:3-, stage:-2",
    ),
    "depth:1.5": "is not a range.*depth:2-4",
}


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("argument", ["where", "N"])
def test_selectors_that_make_no_sense_are_told_what_there_is(found, text, argument):
    with pytest.raises(ArgumentError, match=BAD[text]) as caught:
        select(
            found, **{"where": None, "N": 2, argument: text if argument == "where" else {text: 2}}
        )
    assert f"dynamize({argument}=" in str(caught.value)


@pytest.mark.parametrize(
    ("where", "N"),
    [
        ([], 2),
        (["!stage:1", "!stage:2-"], 2),
        (lambda block: False, 2),
        ("stage:1", {"stage:2": 2}),
        ("stage:1", {"*": 2, "layer1.0": 0, "layer1.1": 0}),
    ],
)
def test_selecting_nothing_is_an_error(found, where, N):
    with pytest.raises(ArgumentError, match=r"selects none.*layer1\.0"):
        select(found, where, N)


def test_a_near_miss_is_named_with_its_reason():
    model = nn.Sequential(basic(3, 8), basic(8, 8))
    model[1].branch[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ArgumentError, match=r"'1'; 1 stays dense: 1\.branch\.0 carries a hook"):
        dynamize(model, where="1", input_size=IMAGE)


def test_a_strange_name_is_a_name_first():
    model = nn.Sequential()
    for name in ("!first", "kind:of[a]", "plain"):
        model.add_module(name, basic(3, 3))
    blocks = find_blocks(model)
    assert chosen(blocks, "kind:of[a]") == ["kind:of[a]"]
    assert chosen(blocks, ["!first"]) == ["!first"]
    assert chosen(blocks, ["!!first"]) == ["kind:of[a]", "plain"]


# --- N ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("N", "sizes"),
    [
        (3, [3] * 8),
        ({"layer2.*": 2, "layer3.*": 4, "layer4.*": 4}, [0, 0, 2, 2, 4, 4, 4, 4]),
        ({"stage:2": 2, "stage:3-": 4}, [0, 0, 2, 2, 4, 4, 4, 4]),
        ({"*": 2, "layer4.1": 4}, [2, 2, 2, 2, 2, 2, 2, 4]),
        ({"layer4.*": 3, "*": 2}, [2, 2, 2, 2, 2, 2, 3, 3]),
        ({"*": 2, "layer4.*": 3}, [2] * 8),
        ({"layer1.*": 0, "*": 2}, [0, 0, 2, 2, 2, 2, 2, 2]),
        ({"!stage:1": 1}, [0, 0, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_a_mapping_gives_every_block_its_number(found, N, sizes):
    asked = sub_blocks(found, N)
    assert [asked.get(block.name, 0) for block in found] == sizes


def test_mixed_numbers_convert_exactly_and_are_counted(resnet):
    N = {"layer1.*": 1, "layer3.*": 4, "layer4.0": 3}
    model, table = dynamize(resnet, N, split="exact", input_size=SIZE)
    assert dict(zip(table.blocks, table.sizes, strict=True)) == {
        **dict.fromkeys(layers(1), 1),
        **dict.fromkeys(layers(3), 4),
        "layer4.0": 3,
    }
    assert [len(b.sub_blocks) for b in multi_path_blocks(model)] == list(table.sizes)
    x = images(resnet, SIZE)
    with torch.no_grad(), force_gates(model, True):
        assert off_by(model(x), resnet(x)) <= 1e-4
    with torch.no_grad(), force_gates(model, 0.5, seed=1), record_paths(model) as paths:
        model(x)
    assert paths.gates.shape == (4, sum(table.sizes))
    assert conversion_of(model).config.N == N


def test_mixed_numbers_train(resnet):
    model, table = dynamize(resnet, {"stage:1": 1, "stage:2-": 3}, input_size=SIZE)
    loss = DMNNLoss(table, target=0.5)
    with record_paths(model.train()) as paths:
        logits = model(images(model, SIZE))
    loss(logits, torch.zeros(4, dtype=torch.long), paths).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_block_of_one_is_skipped_or_run_as_a_whole(resnet):
    model, table = dynamize(resnet, 1, input_size=SIZE)
    assert table.sizes == (1,) * 8
    x = images(resnet, SIZE)
    with torch.no_grad(), force_gates(model, True):
        assert off_by(model(x), resnet(x)) <= 1e-4


def widths(model):
    return {
        name.removesuffix(".multi_path"): block.sub_blocks[0].conv1.out_channels
        for name, block in model.named_modules()
        if name.endswith(".multi_path")
    }


@pytest.mark.slow
def test_matched_widths_follow_each_blocks_number():
    source = models.resnet50()
    mixed, table = dynamize(
        source, {"layer3.[01]": 2, "layer3.*": 4, "layer4.*": 3}, input_size=SIZE
    )
    got = widths(mixed)
    assert len(got) == 9
    for name, width in got.items():
        # The paper's: 40, 30 and 24 × 2^stage for 2, 3 and 4.
        N = 2 if name in ("layer3.0", "layer3.1") else 4 if name.startswith("layer3") else 3
        assert width == pytest.approx({2: 160, 3: 240, 4: 96}[N], rel=0.05), name
    assert len({got["layer3.0"], got["layer3.1"]}) == 1
    assert len({got[f"layer3.{i}"] for i in range(2, 6)}) == 1
    assert table.params == pytest.approx(table.dense_params, rel=0.01)


def test_leaving_the_first_stage_dense_leaves_its_weights_alone(resnet):
    model, _ = dynamize(resnet, {"!stage:1": 2}, input_size=SIZE)
    before, after = resnet.layer1.state_dict(), model.layer1.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[k], after[k]) for k in before)


# --- too narrow -------------------------------------------------------------------------------


def uneven():
    """The second block has more channels than the first."""
    return nn.Sequential(basic(3, 4), basic(4, 16))


def test_a_block_that_is_too_narrow_stays_dense_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        _, table = dynamize(uneven(), 8, input_size=IMAGE)
    assert table.blocks == ("1",)
    assert "0 stays dense: 4 hidden channels, fewer than 8" in caplog.text


@pytest.mark.parametrize(
    ("N", "where"), [(8, "0"), (8, ["0", "1"]), ({"0": 8, "1": 2}, None), ({"0": 8, "*": 2}, "*")]
)
def test_a_block_that_was_asked_for_by_name_is_an_error_instead(N, where):
    source = uneven()
    before = {k: v.clone() for k, v in source.state_dict().items()}
    with pytest.raises(ArgumentError, match="0 is asked for by name, but has 4 hidden channels"):
        dynamize(source, N, where=where, input_size=IMAGE, inplace=True)
    assert list(source.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in source.state_dict().items())


@pytest.mark.parametrize("make", [basic_net, bottleneck_net])
@pytest.mark.parametrize("N", [100, {"*": 100}])
def test_more_sub_blocks_than_channels_anywhere_lists_the_blocks(make, N):
    with pytest.raises(NoBlocksFoundError, match=r"b1 .*8 hidden channels, fewer than 100"):
        dynamize(make(), N, input_size=IMAGE)
