"""One shared tail norm on the gated sum: the source's function, but other training statistics."""

import copy
import logging
import pickle

import block_nets
import pytest
import torch
from helpers import assert_statistics, check_masked_is_skipping, patterns, run
from nets import NETS, Residual, images, off_by
from quick import slow_unless
from small_nets import IMAGE, basic_net, inverted_net, seasoned
from torch import nn
from whole_nets import SMALL, size_of
from whole_nets import build as whole_net

from dmnn_convert import (
    DMNNLoss,
    calibrate,
    dynamize,
    force_gates,
    gate_parameters,
    load,
    record_paths,
    reestimate_norms,
    save,
)
from dmnn_convert.nn import conversion_of, multi_path_blocks

BATCH = 5
CASES = (
    ("option_a", "exact", 3),
    ("resnet18", "matched", 3),
    ("resnet50", "exact", 2),
    ("resnet50", "matched", 2),
    ("mobilenet_v2", "exact", 2),
    ("timm:seresnet18", "exact", 2),
    ("timm:efficientnet_b0", "exact", 2),
    ("timm:efficientnet_b0", "matched", 2),
)
"""CIFAR's ResNet-20 is called option_a."""
EXACT = [case for case in CASES if case[1] == "exact" or case[0] == "resnet18"]
NORMLESS = ("grn_channels_last", "channels_last", "post_norm_of_tokens", "preactivation")
NORMLESS += ("std_conv", "scaled_std_conv", "glu_mlp", "swiglu", "swiglu_norm")
NORMLESS += ("glu_function", "group_norm_bottleneck", "linear_of_parameters", "conv_of_a_layer")
NORMLESS += tuple(name for name in block_nets.TYPES if name.startswith("mlp"))
"""Blocks that end without a norm."""
ENDING = [name for name in block_nets.TYPES if name not in (*NORMLESS, "repvgg")]


def convert(name, split, N):
    """Return source, converted model and table."""
    source = whole_net(name)
    return source, *dynamize(
        source, N, split=split, input_size=size_of(name), tail_norm="shared", num_categories=2
    )


def quick(case):
    return case[0] in ("option_a", "resnet18")


def name_of(case):
    return "-".join(map(str, case))


@pytest.fixture(
    scope="module",
    params=slow_unless(quick, zip(CASES)),
    ids=name_of,
)
def case(request):
    """A whole network; its tests follow each other, so that one at a time is kept."""
    return request.param


@pytest.fixture(scope="module")
def whole(case):
    """Return source, converted model and table; nobody changes them."""
    return convert(*case)


def convert_type(name, split="exact", N=3):
    source = block_nets.build(name).eval()
    size = block_nets.size_of(name)
    return source, *dynamize(source, N, split=split, input_size=size, tail_norm="shared")


@pytest.fixture(scope="module")
def of_type(request):
    """Return a type's name and what its conversion returns; nobody changes it."""
    return request.param, convert_type(request.param)


def types(names):
    """Run a test for types of block: the quick suite for a few that end in distinct ways."""
    few = (*block_nets.OF_EACH_KIND, "se_output", "norm_act_output", "layer_scale_output")
    cases = slow_unless(few.__contains__, names)
    return pytest.mark.parametrize("of_type", cases, indirect=True)


def count(parameters):
    return sum(p.numel() for p in parameters)


def basic_model():
    return dynamize(seasoned(basic_net()), 2, input_size=IMAGE, tail_norm="shared").model


# --- the function -----------------------------------------------------------------------------


@pytest.mark.parametrize("execution", slow_unless("skip".__eq__, ["skip", "masked"]))
@pytest.mark.parametrize("case", slow_unless(quick, zip(EXACT)), ids=name_of, indirect=True)
def test_all_on_is_the_source(case, whole, execution):
    source, model, _ = whole
    x = images(source, size_of(case[0]), 2)
    assert all(block.shared_norm is not None for block in multi_path_blocks(model))
    with torch.no_grad():
        assert off_by(run(model, x, True, execution), source(x)) <= 1e-4


@pytest.mark.parametrize("execution", ["skip", "masked"])
@types(block_nets.TYPES)
def test_all_on_is_the_source_for_every_type_of_block(of_type, execution):
    name, (source, model, _) = of_type
    x = images(source, block_nets.size_of(name), BATCH)
    (block,) = multi_path_blocks(model)
    assert (block.shared_norm is not None) == (name in ENDING)
    with torch.no_grad():
        assert off_by(run(model, x, True, execution), source(x)) <= 1e-5


def test_masked_is_skipping(case, whole):
    source, model, table = whole
    x = images(source, size_of(case[0]), BATCH)
    for gates in patterns(BATCH, len(table.rows)):
        skipped, masked = (run(model, x, gates, how) for how in ("skip", "masked"))
        assert off_by(skipped, masked) <= 1e-5


@types(ENDING)
def test_masked_is_skipping_for_every_type_of_block(of_type):
    name, (_, model, _) = of_type
    check_masked_is_skipping(model, block_nets.size_of(name), 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDING)
def test_masked_is_skipping_for_every_type_of_block_whose_sub_blocks_are_matched(name):
    check_masked_is_skipping(convert_type(name, "matched")[1], block_nets.size_of(name), 3)


def with_biases():
    layers = [nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)]
    return Residual(nn.Sequential(*layers))


@pytest.mark.parametrize("execution", ["skip", "masked"])
def test_some_gates_on_by_hand(execution):
    net = seasoned(with_biases())
    p, _, q, norm = net.body
    model, _ = dynamize(net, 2, input_size=(6, 4, 4), tail_norm="shared")
    x = images(net, (6, 4, 4), 3)
    with torch.no_grad():
        hidden = p(x).relu()[:, :4]
        half = torch.einsum("oc,bchw->bohw", q.weight[:, :4, 0, 0], hidden)
        # The last layer's bias is shared out too, and half of it is off.
        one = x + norm(half + q.bias[:, None, None] / 2)
        expected = torch.stack([x[0], one[1], net(x)[2]])
    gates = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    got = run(model, x, gates, execution)
    assert off_by(got, expected) <= 1e-6
    assert torch.equal(got[0], x[0])


@types(ENDING)
def test_an_image_with_all_gates_off_gets_the_shortcut_alone_in_training_too(of_type):
    name, (_, model, _) = of_type
    model = copy.deepcopy(model).train()
    (block,) = multi_path_blocks(model)
    seen = []
    block.register_forward_hook(lambda _, inputs, output: seen.append((*inputs, output)))
    gates = torch.ones(BATCH, 3)
    gates[2] = 0
    with force_gates(model, gates), torch.no_grad():
        model(images(model, block_nets.size_of(name), BATCH))
    *inputs, output = seen[0]
    if len(inputs) > 1 and inputs[1] is not None:
        assert torch.equal(output[2], inputs[1][2])
        assert not torch.equal(output[0], inputs[1][0])
    else:
        assert output[2].isfinite().all()


# --- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dropout_after", "se_output", "norm_act_output"])
def test_the_statistics_of_training_see_zeros_where_all_gates_are_off(name):
    own = name in block_nets.TYPES
    source = block_nets.build(name) if own else NETS[name].build()
    size = block_nets.size_of(name) if own else NETS[name].size
    model = dynamize(source, 2, input_size=size, tail_norm="shared").model.train()
    block = multi_path_blocks(model)[0]
    norm = block.shared_norm.get_submodule(block.tail_norm)
    norm.momentum = 1.0
    seen = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    gates = torch.ones(BATCH, len(conversion_of(model).table.rows))
    gates[1], gates[3, 0] = 0, 0
    with force_gates(model, gates):
        model(images(model, size, BATCH))
    assert not seen[0][1].any()
    assert seen[0][3].any()
    assert_statistics(norm, seen[0])


def test_one_training_step_reaches_every_parameter(case, whole):
    (name, _, N), (_, model, table) = case, whole
    model = copy.deepcopy(model).train()
    x, labels = images(model, size_of(name), 8), torch.arange(8) % 4
    with record_paths(model) as paths:
        logits = model(x)[:, :4]
    DMNNLoss(table, target=0.5, categories=[0, 0, 1, 1])(logits, labels, paths).backward()
    missing = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert missing == []
    model.zero_grad()
    gates = torch.arange(len(table.rows)) % N == torch.arange(8)[:, None] % N
    with force_gates(model, gates.float()):
        model(x).square().mean().backward()
    owned = {id(p) for p in gate_parameters(model)}
    idle = [n for n, p in model.named_parameters() if id(p) not in owned and not p.grad.any()]
    assert idle == []


@types(ENDING)
def test_no_gate_at_all_still_gives_every_parameter_a_gradient(of_type):
    name, (_, model, _) = of_type
    model = copy.deepcopy(model).train()
    owned = {id(p) for p in gate_parameters(model)}
    with force_gates(model, False):
        model(images(model, block_nets.size_of(name), BATCH)).square().mean().backward()
    parameters = [p for p in model.parameters() if id(p) not in owned]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)


def test_gates_of_an_image_with_all_off_learn():
    torch.manual_seed(0)
    model = dynamize(seasoned(basic_net()), 1, input_size=IMAGE, tail_norm="shared").model.train()
    block = model.b1.multi_path
    gates = torch.zeros(4, 1, requires_grad=True)
    block.controller.forward = lambda x: gates
    model(images(model, IMAGE, 4)).square().mean().backward()
    assert gates.grad.abs().min() > 0


def test_calibration_leaves_it_alone():
    model = basic_model()
    before = copy.deepcopy(model.state_dict())
    calibrate(model, [images(model, IMAGE, 8)])
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())


@pytest.mark.parametrize("count", ["all", "running"])
def test_reestimation_counts_the_images_that_it_is_asked_to(count):
    model, x = basic_model(), images(basic_net(), IMAGE, 4)
    block = model.b1.multi_path
    gates = torch.tensor([[1.0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]])
    norm = block.shared_norm.get_submodule(block.tail_norm)
    seen = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with force_gates(model, gates):
        reestimate_norms(model, [x], count=count)
    assert len(seen[0]) == {"all": 4, "running": 3}[count]
    assert_statistics(norm, seen[0])


# --- costs ------------------------------------------------------------------------------------


def test_it_costs_what_it_did_but_for_the_copies(case, whole):
    (name, split, N), (source, model, table) = case, whole
    options = dict(split=split, input_size=size_of(name), num_categories=2)
    plain, own = dynamize(source, N, **options)
    copies = sum(
        (N - 1) * count(block.sub_blocks[0].get_submodule(block.tail_norm).parameters())
        for block in multi_path_blocks(plain)
    )
    assert [row.macs for row in table.rows] == [row.macs for row in own.rows]
    assert (table.total, table.dense_total) == (own.total, own.dense_total)
    assert own.params - table.params == copies > 0
    assert count(model.parameters()) == table.params + count(gate_parameters(model))
    if split == "exact" and name != "timm:efficientnet_b0":  # its squeeze has biases, a copy each
        assert table.params == count(source.parameters())


# --- copies -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_saved_model_comes_back(case, whole, tmp_path):
    _, model, table = whole
    save(model, tmp_path / "saved", category_heads=True)
    loaded, loaded_table = load(tmp_path / "saved", whole_net(case[0], seed=1))
    x, gates = images(model, size_of(case[0]), 2), patterns(2, len(table.rows))[0]
    assert conversion_of(loaded).config == conversion_of(model).config
    assert conversion_of(loaded).config.tail_norm == "shared"
    assert loaded_table == table
    assert torch.equal(run(loaded, x, gates), run(model, x, gates))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize(
    "case",
    [CASES[1], pytest.param(CASES[4], marks=pytest.mark.slow)],
    ids=name_of,
    indirect=True,
)
def test_a_copy_is_whole_and_independent(whole, copied):
    _, model, table = whole
    x, gates = images(model, SMALL, 2), patterns(2, len(table.rows))[0]
    expected = run(model, x, gates)
    again = copied(model)
    assert torch.equal(run(again, x, gates), expected)
    with torch.no_grad():
        for tensor in (*again.parameters(), *again.buffers()):
            tensor.zero_()
    assert torch.equal(run(model, x, gates), expected)


def test_the_source_keeps_its_norms():
    source = seasoned(basic_net())
    before = copy.deepcopy(source.state_dict())
    model = dynamize(source, 2, input_size=IMAGE, tail_norm="shared").model.train()
    model(images(model, IMAGE, 4)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(v, before[name]) for name, v in source.state_dict().items())


@pytest.mark.slow
def test_the_masked_form_compiles_whole():
    source = seasoned(inverted_net())
    model = dynamize(source, 2, input_size=IMAGE, tail_norm="shared").model
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = images(source, IMAGE, BATCH)
    with torch.no_grad():
        assert off_by(compiled(x), source(x)) <= 1e-5


# --- what cannot be shared --------------------------------------------------------------------


def test_norms_of_parallel_paths_stay_and_it_is_said(caplog):
    source = block_nets.build("repvgg").eval()
    size = block_nets.size_of("repvgg")
    with caplog.at_level(logging.WARNING, "dmnn_convert"):
        model, table = dynamize(source, 2, input_size=size, tail_norm="shared")
    (block,) = multi_path_blocks(model)
    assert block.shared_norm is None
    assert "keeps norms in every sub-block" in caplog.text
    assert table == dynamize(source, 2, input_size=size).table


@pytest.mark.parametrize("name", slow_unless(NORMLESS[:2].__contains__, NORMLESS))
def test_without_a_norm_there_is_nothing_to_share(name, caplog):
    model = convert_type(name)[1]
    assert caplog.text == ""
    plain, _ = dynamize(block_nets.build(name).eval(), 2, input_size=block_nets.size_of(name))
    assert all(block.tail_norm is None for block in multi_path_blocks(plain))
    assert all(block.shared_norm is None for block in multi_path_blocks(model))
