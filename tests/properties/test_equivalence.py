"""A converted model computes what its source did, however it is run."""

import copy
import itertools
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import (
    NETS,
    Options,
    Residual,
    SumBlock,
    WrittenBlock,
    conv_norm,
    dropout,
    images,
    off_by,
    randomised,
    stochastic,
)
from quick import one_in, slow_unless
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth
from whole_nets import SMALL, build, size_of

from dmnn_convert import dynamize, force_gates, gate_parameters, record_paths, set_execution
from dmnn_convert.errors import ConversionError, NoBlocksFoundError
from dmnn_convert.nn import controllers, multi_path_blocks

ZOO = {
    "resnet18": (2, 3, 4, 8),
    "resnet50": (2, 3),
    "resnext50_32x4d": (2, 3),
    "wide_resnet50_2": (2,),
    "mobilenet_v2": (2, 3, 4, 8),
    "timm:resnet26d": (2, 3),
    "timm:mobilenetv2_100": (2, 3),
}
HIDDEN = ("resnet18", "resnext50_32x4d", "mobilenet_v2", "timm:mobilenetv2_100")
"""What the paper's own split keeps exact too."""


def run(model, x, gates=True):
    with torch.no_grad(), force_gates(model, gates):
        return model(x)


def give_gates_a_mind(model, seed=0):
    """Let the controllers depend on the image, in place: fresh ones turn everything on."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for controller in controllers(model):
            controller.w3.weight.normal_(std=2.0, generator=generator)
            controller.w3.bias.normal_(std=0.5, generator=generator)
    return model


# --- all gates on -----------------------------------------------------------------------------


def check_equal(name, N, split):
    source = build(name)
    before = copy.deepcopy(source.state_dict())
    model, _ = dynamize(source, N, split=split, input_size=size_of(name))
    x = images(source, size_of(name), batch=2)
    with torch.no_grad():
        expected = source(x)
    assert expected.abs().max() > 0
    for execution in ("skip", "masked"):
        set_execution(model, execution)
        assert off_by(run(model, x), expected) <= 1e-4
    assert len({len(b.sub_blocks) for b in multi_path_blocks(model)} - {N}) == 0
    assert all(torch.equal(v, before[k]) for k, v in source.state_dict().items())


OF_EACH_KIND = ("sum_plus", "chain", "grouped", "bottlenecks")
FEW = (*OF_EACH_KIND, "functional", "conv3d")


@pytest.mark.parametrize(
    ("name", "N"),
    slow_unless(lambda name, N: N == 3 and name in FEW, itertools.product(NETS, (2, 3, 4, 8))),
)
def test_exact_split_of_user_networks(name, N):
    check_equal(name, N, "exact")


QUICK = ("resnet18", "mobilenet_v2")


@pytest.mark.parametrize(
    ("name", "N"),
    slow_unless(
        lambda name, N: N == 2 and name in QUICK,
        [(name, N) for name, counts in ZOO.items() for N in counts],
    ),
)
def test_exact_split_of_the_zoo(name, N):
    check_equal(name, N, "exact")


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_unless("mobilenet_v2".__eq__, HIDDEN))
def test_matched_split_is_exact_for_hidden_channels(name):
    check_equal(name, 2, "matched")


@pytest.mark.parametrize(
    "name",
    slow_unless(
        OF_EACH_KIND.__contains__,
        [name for name, net in NETS.items() if "bottleneck" not in net.kinds],
    ),
)
def test_matched_split_is_exact_for_hidden_channels_of_user_networks(name):
    check_equal(name, 3, "matched")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    source = build("bottlenecks").to(dtype)
    model, _ = dynamize(source, input_size=size_of("bottlenecks"), split="exact")
    x = images(source, size_of("bottlenecks"))
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 0.05}[dtype]
    with torch.no_grad():
        assert off_by(run(model, x), source(x)) <= tolerance


def test_one_sub_block_is_the_source_with_a_gate():
    source = build("chain")
    model, _ = dynamize(source, 1, input_size=size_of("chain"))
    x = images(source, size_of("chain"))
    with torch.no_grad():
        assert off_by(run(model, x), source(x)) <= 1e-4


def test_optional_arguments_that_were_traced_as_absent_are_not_ignored():
    source = randomised(Options()).eval()
    model, _ = dynamize(source, input_size=(3, 16, 16))
    x = images(source, (3, 16, 16))
    with force_gates(model, True):
        assert off_by(model(x, flag=True), source(x, flag=True)) <= 1e-4
        assert off_by(model(x, None), source(x)) <= 1e-4
        with pytest.raises(Exception, match="mask"):
            model(x, torch.zeros(1, 8, 1, 1))


# --- branches of every kind -------------------------------------------------------------------


def body(*tail, hidden=None, first=None, second=None, width=8):
    first, second = first or conv_norm(8, width), second or conv_norm(width, 8)
    return Residual(nn.Sequential(*first, *(hidden or [nn.ReLU()]), *second, *tail))


def frozen_norm(**options):
    return nn.Conv2d(8, 8, 3, padding=1, **options), FrozenBatchNorm2d(8)


BRANCHES = {
    "activation_before_the_sum": lambda: body(nn.ReLU()),
    "prelu": lambda: body(nn.PReLU(8), hidden=[nn.PReLU(12)], width=12),
    "prelu_of_the_same_width": lambda: body(hidden=[nn.PReLU(8)]),
    "shared_prelu": lambda: body(hidden=[nn.PReLU()]),
    "clamped_around_zero": lambda: body(nn.Hardtanh(-1.0, 2.0)),
    "activation_in_place": lambda: body(hidden=[nn.LeakyReLU(inplace=True)]),
    "channel_multiplier": lambda: body(
        hidden=[nn.ReLU(), *conv_norm(12, 24, groups=12), nn.ReLU()],
        first=conv_norm(8, 12, 1),
        second=conv_norm(24, 8, 1),
    ),
    "pools_and_pads": lambda: body(
        nn.Dropout(),
        hidden=[
            *(nn.MaxPool2d(3, 1, 1), nn.ReLU(), nn.Dropout2d()),
            *(nn.ReflectionPad2d(1), nn.AvgPool2d(3, 1)),
        ],
    ),
    "upsampled": lambda: body(nn.Upsample(scale_factor=2), first=conv_norm(8, 8, stride=2)),
    "no_affine": lambda: body(
        first=[nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, affine=False)],
        second=[nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, affine=False)],
    ),
    "frozen_norm": lambda: body(first=frozen_norm(), second=frozen_norm(bias=False)),
    "padding_modes": lambda: body(
        first=[nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")],
        second=[nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")],
    ),
    "dilated": lambda: body(
        first=[nn.Conv2d(8, 8, 3, padding=2, dilation=2)],
        second=[nn.Conv2d(8, 8, 3, padding="same")],
    ),
    "dropout_around_the_norm": lambda: body(
        nn.Dropout(), second=[nn.Conv2d(8, 8, 1), nn.Dropout(), nn.BatchNorm2d(8)]
    ),
    "gated_linear_unit": lambda: WrittenBlock(
        lambda m, x: x + m.o(m.c(x) * torch.sigmoid(m.d(x))),
        **dict(c=conv_norm(8, 16), d=conv_norm(8, 16), o=conv_norm(16, 8)),
    ),
    "layer_scale": lambda: WrittenBlock(
        lambda m, x: x + m.gamma * m.branch(x), gamma=nn.Parameter(torch.randn(8, 1, 1))
    ),
    "scaled": lambda: WrittenBlock(lambda m, x: 0.1 * m.branch(x) + x),
    "keyword_arguments": lambda: WrittenBlock(
        lambda m, x: x + m.b(input=F.relu(input=m.a(input=x)))
    ),
    "explicit_forward": lambda: WrittenBlock(lambda m, x: x + m.b.forward(F.relu(m.a.forward(x)))),
    "pooled_shortcut": lambda: WrittenBlock(
        lambda m, x: F.avg_pool2d(x, 2) + m.b(F.max_pool2d(m.a(x), 2))
    ),
    "gated_shortcut": lambda: WrittenBlock(
        lambda m, x: x * torch.sigmoid(m.g(x.mean((2, 3), keepdim=True))) + m.branch(x),
        g=nn.Conv2d(8, 8, 1),
    ),
    "padded": lambda: WrittenBlock(
        lambda m, x: x + m.c(F.pad(F.relu(m.a(x)), (1, 1, 1, 1), mode="reflect")),
        c=conv_norm(8, 8, padding=0),
    ),
    "two_paths_into_the_trunk": lambda: WrittenBlock(
        lambda m, x: x + m.branch(torch.cat([m.p(x), m.q(x)], 1)),
        **dict(p=conv_norm(8, 4), q=conv_norm(8, 4)),
    ),
    "sum_of_three": lambda: WrittenBlock(
        lambda m, x: x + m.branch(x) + m.d(F.relu(m.c(x))),
        **dict(c=conv_norm(8, 8), d=conv_norm(8, 8)),
    ),
    "a_block_in_a_branch": lambda: WrittenBlock(
        lambda m, x: x + m.branch(m.inner(m.c(x))), c=conv_norm(8, 8), inner=SumBlock("plus")
    ),
    "a_fork_that_the_sum_overwrites": lambda: WrittenBlock(lambda m, x: x.add_(m.branch(x)).relu()),
}


@pytest.mark.parametrize("name", one_in(3, BRANCHES))
def test_branches_of_every_kind(name):
    source = randomised(nn.Sequential(conv_norm(3, 8), randomised(BRANCHES[name]()))).eval()
    x = images(source, (3, 12, 12))
    model, table = dynamize(source, 3, split="exact", input_size=(3, 12, 12))
    with torch.no_grad():
        assert off_by(run(model, x), source(x)) <= 1e-4
    own = sum(p.numel() for p in gate_parameters(model))
    assert table.params == sum(p.numel() for p in model.parameters()) - own
    for kind in ("one_each_way", "off", 0.5):
        (skipped, _), (masked, _) = both_ways(model, x, pattern(model, kind, len(x)))
        assert off_by(skipped, masked) <= 1e-4, kind
    copy.deepcopy(model).train()(x).square().mean().backward()


def test_what_mixes_images_is_not_skipped_over():
    net = WrittenBlock(lambda m, x: x + m.branch(x - x.mean(0, keepdim=True)))
    source = randomised(nn.Sequential(conv_norm(3, 8), net)).eval()
    x = images(source, (3, 12, 12))
    try:
        model, _ = dynamize(source, 2, split="exact", input_size=(3, 12, 12))
    except NoBlocksFoundError as error:
        assert "mean" in str(error)
    else:
        gates = pattern(model, "one_each_way", len(x))
        (skipped, _), (masked, _) = both_ways(model, x, gates)
        assert off_by(skipped, masked) <= 1e-4


def test_a_traced_source_converts():
    source = build("resnet18")
    model, table = dynamize(torch.fx.symbolic_trace(source), input_size=SMALL)
    x = images(source, SMALL)
    with torch.no_grad():
        assert off_by(run(copy.deepcopy(model), x), source(x)) <= 1e-4
    assert len(table.blocks) == 8


def test_a_feature_extractor_converts_or_comes_with_the_remedy():
    source = create_feature_extractor(build("resnet18"), {"layer2": "two", "layer4": "four"})
    x = images(source, SMALL)
    try:
        model, _ = dynamize(source, input_size=SMALL)
    except ConversionError as error:
        assert "please report" not in str(error)
        assert "first" in str(error)
    else:
        with torch.no_grad():
            assert off_by(run(model, x)["four"], source(x)["four"]) <= 1e-4


def test_the_backbone_of_a_detector_converts():
    source = IntermediateLayerGetter(build("resnet18"), {"layer2": "two", "layer4": "four"})
    model, table = dynamize(source.eval(), input_size=SMALL)
    x = images(source, SMALL)
    got = run(model, x)
    with torch.no_grad():
        assert all(off_by(got[name], features) <= 1e-4 for name, features in source(x).items())
    assert len(table.blocks) == 8


# --- masked is skipping -----------------------------------------------------------------------

EXECUTED = ("sum_plus", "chain", "bottlenecks", "grouped", "drop_path", "inline", "preactivation")
PATTERNS = ("on", "off", "own", "one_each_way", 0.2, 0.5, 0.8)


def pattern(model, kind, batch):
    total = sum(controllers(model)[0].chain.sizes)
    if kind == "one_each_way":
        gates = torch.ones(batch, total)
        gates[::2] = 0
        return gates
    return {"on": True, "off": False}.get(kind, kind)


def both_ways(model, x, gates):
    outputs = []
    for execution in ("skip", "masked"):
        set_execution(model, execution)
        with torch.no_grad(), record_paths(model) as paths:
            output = model(x) if gates == "own" else run(model, x, gates)
        outputs.append((output, paths.gates))
    return outputs


@pytest.mark.parametrize("split", slow_unless("exact".__eq__, ["exact", "matched"]))
@pytest.mark.parametrize("name", one_in(2, EXECUTED))
def test_masked_is_skipping(name, split):
    source = build(name)
    model = give_gates_a_mind(dynamize(source, 3, split=split, input_size=size_of(name)).model)
    for batch in (1, 5):
        x = images(source, size_of(name), batch=batch)
        for kind in PATTERNS:
            gates = pattern(model, kind, batch)
            (skipped, taken), (masked, same) = both_ways(model, x, gates)
            assert torch.equal(taken, same), (batch, kind)
            assert off_by(skipped, masked) <= 1e-4, (batch, kind)


def test_an_empty_batch_gives_an_empty_output():
    source = build("chain")
    model, _ = dynamize(source, input_size=size_of("chain"))
    x = images(source, size_of("chain"), batch=1)[:0]
    assert model(x).shape == source(x).shape


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), batch=st.integers(1, 6), chance=st.floats(0, 1))
def test_any_gates_give_the_same_numbers_both_ways(seed, batch, chance):
    model, x = converted_chain()
    generator = torch.Generator().manual_seed(seed)
    total = sum(controllers(model)[0].chain.sizes)
    gates = (torch.rand(batch, total, generator=generator) < chance).float()
    (skipped, taken), (masked, same) = both_ways(model, x[:batch], gates)
    assert torch.equal(taken, same)
    assert off_by(skipped, masked) <= 1e-4


_CONVERTED = []


def converted_chain():
    if not _CONVERTED:
        source = build("chain")
        model = give_gates_a_mind(dynamize(source, 3, input_size=size_of("chain")).model)
        _CONVERTED.extend((model, images(source, size_of("chain"), batch=6)))
    return _CONVERTED


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(6)))
def test_the_order_of_images_makes_no_difference(order):
    model, x = converted_chain()
    set_execution(model, "skip")
    with torch.no_grad(), record_paths(model) as paths:
        straight, permuted = model(x), model(x[order])
    gates = paths.gates
    assert 0 < gates[:6].mean() < 1, "the gates decide nothing"
    assert torch.equal(gates[6:], gates[:6][order])
    assert off_by(permuted, straight[order]) <= 1e-4


def test_each_image_alone_gives_what_it_gives_in_a_batch():
    model, x = converted_chain()
    set_execution(model, "skip")
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in x])
        assert off_by(alone, model(x)) <= 1e-4


# --- training and evaluation ------------------------------------------------------------------


@pytest.mark.parametrize("inside", [True, False])
def test_functional_dropout_stays_on_in_training_and_off_in_evaluation(inside):
    model, _ = dynamize(randomised(dropout(inside, p=0.9)), input_size=(3, 16, 16))
    x = images(model, (3, 16, 16))
    model.eval()
    assert torch.equal(run(model, x), run(model, x))
    model.train()
    assert not torch.equal(run(model, x), run(model, x))
    model.eval()
    assert torch.equal(run(model, x), run(model, x))


def test_functional_dropout_of_everything_leaves_the_shortcut():
    source = randomised(dropout(False, p=1.0))
    model, _ = dynamize(source, input_size=(3, 16, 16))
    x = images(model, (3, 16, 16))
    with torch.no_grad():
        expected = source.eval()(x)
        assert off_by(run(model.eval(), x), expected) <= 1e-4
        stem = source[0].train()(x)
    assert off_by(run(model.train(), x), stem.relu()) <= 1e-4


def test_stochastic_depth_drops_whole_images_in_training():
    source = randomised(stochastic(StochasticDepth(0.5, "row")))
    model, _ = dynamize(source, input_size=(3, 16, 16))
    x = images(model, (3, 16, 16), batch=32)
    model.train()
    stem = model[0](x).relu()
    dropped = (run(model, x) - stem).flatten(1).abs().amax(1) < 1e-5
    assert 4 <= dropped.sum() <= 28
    model.eval()
    assert torch.equal(run(model, x), run(model, x))


@pytest.mark.parametrize("name", ["functional", "option_a", "chain"])
def test_training_updates_the_untouched_norms_as_before(name):
    source = build(name).train()
    model, _ = dynamize(source, input_size=size_of(name))
    assert model.training
    x = images(source, size_of(name))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    source(x)
    run(model, x)
    state, expected = model.state_dict(), source.state_dict()
    first = next(k for k in expected if k.endswith("running_mean"))
    assert first in state
    assert torch.allclose(state[first], expected[first])
    moved = [k for k in state if k.endswith(("running_mean", "running_var"))]
    assert moved
    assert all(not torch.equal(state[k], before[k]) for k in moved)


@pytest.mark.parametrize("name", ["functional", "root_held", "bottlenecks", "chain"])
def test_every_parameter_gets_a_gradient(name):
    model, _ = dynamize(build(name).train(), 2, input_size=size_of(name))
    model(images(model, size_of(name))).square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []


# --- compiled, exported, traced ---------------------------------------------------------------

FOLLOWED = (
    *("chain", "functional"),
    *("bottlenecks", "inline", "dropout_after", "resnet18", "mobilenet_v2"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLLOWED)
def test_compiles_whole_and_gives_the_same(name):
    source = build(name)
    model = give_gates_a_mind(dynamize(source, 2, input_size=size_of(name)).model)
    x = images(source, size_of(name))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    set_execution(model, "masked")
    with torch.no_grad():
        assert off_by(compiled(x), model(x)) <= 1e-4
        model.train()
        assert compiled(x).shape == model(x).shape


@pytest.mark.parametrize("name", slow_unless("functional".__eq__, FOLLOWED))
def test_exports_and_gives_the_same(name):
    source = build(name)
    model = give_gates_a_mind(dynamize(source, 2, input_size=size_of(name)).model)
    x = images(source, size_of(name))
    with torch.no_grad():
        exported = torch.export.export(model, (x,)).module()
        set_execution(model, "masked")
        assert off_by(exported(x), model(x)) <= 1e-4


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
def test_jit_traces_the_masked_form():
    model, x = converted_chain()
    set_execution(model, "masked")
    with torch.no_grad():
        expected = model(x)
        set_execution(model, "skip")
        traced = torch.jit.trace(model, (x,), check_trace=False)
        assert off_by(traced(x), expected) <= 1e-4
        assert off_by(traced(x.flip(0)), expected.flip(0)) <= 1e-4


# --- seeds and threads ------------------------------------------------------------------------


def gates_in_training(model, x, seed):
    torch.manual_seed(seed)
    with torch.no_grad(), record_paths(model) as paths:
        model.train()(x)
    return paths.gates


def test_the_same_seed_gives_the_same_gates():
    model, _ = dynamize(build("option_a"), input_size=size_of("option_a"))
    x = images(model, size_of("option_a"), batch=8)
    assert torch.equal(gates_in_training(model, x, 5), gates_in_training(model, x, 5))
    assert not torch.equal(gates_in_training(model, x, 5), gates_in_training(model, x, 6))


def test_the_same_seed_gives_the_same_controllers():
    source, states = build("chain"), []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(dynamize(source, input_size=size_of("chain")).model.state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_threads_give_what_one_thread_gives():
    model, x = converted_chain()
    set_execution(model, "skip")
    parts = [x[:2], x[2:3], x[3:]]
    with torch.no_grad():
        expected = [model(part) for part in parts]
    results, errors = {}, []
    start = threading.Barrier(len(parts))

    def work(i):
        try:
            start.wait()
            for _ in range(20):
                with torch.no_grad(), record_paths(model) as paths:
                    results.setdefault(i, []).append(model(parts[i]))
                assert len(paths.gates) == len(parts[i])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for i, outputs in expected_pairs(expected, results):
        assert off_by(outputs, expected[i]) <= 1e-4


def expected_pairs(expected, results):
    assert {i: len(outputs) for i, outputs in results.items()} == dict.fromkeys(
        range(len(expected)), 20
    )
    return [(i, output) for i, outputs in results.items() for output in outputs]


def test_one_thread_may_force_gates_while_another_decides():
    model, x = converted_chain()
    set_execution(model, "skip")
    with torch.no_grad():
        own, forced = model(x), run(model, x, True)
    seen = []
    with force_gates(model, True):
        thread = threading.Thread(target=lambda: seen.append(model(x).detach()))
        thread.start()
        thread.join()
        with torch.no_grad():
            assert torch.equal(model(x), forced)
    assert torch.equal(seen[0], own)
    assert not torch.equal(own, forced)


def test_a_model_inside_another_is_recorded_and_forced_from_outside():
    model, x = converted_chain()
    outer = nn.Sequential(model, nn.ReLU())
    with torch.no_grad(), force_gates(outer, False), record_paths(outer) as paths:
        outer(x)
    kept = torch.tensor([c.keep_one for c in controllers(model)]).repeat(6, 1)
    per_block = torch.stack([g.sum(1) for g in paths.gates.split(paths.sizes, dim=1)], 1)
    assert torch.equal(per_block > 0, kept)
