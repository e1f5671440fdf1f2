"""The nested split: a level is the source with its hidden layers sliced, in every mode."""

import copy
import itertools
import pickle

import pytest
import torch
from nets import off_by
from quick import slow_unless
from small_nets import NETS, seasoned
from torch import nn
from torchvision import models

from dmnn_convert import (
    Cascade,
    GateConfig,
    at_level,
    dynamize,
    estimate_levels,
    force_gates,
    freeze,
    level_losses,
    level_path,
    load,
    prepare,
    record_paths,
    resource_loss,
    save,
    search_levels,
    set_execution,
)
from dmnn_convert.flops import FlopsTable
from dmnn_convert.nn import along_path, controllers, multi_path_blocks
from dmnn_convert.refit import reestimate_norms

SIZE = (3, 8, 8)


def converted(name, N=4, **options):
    source = seasoned(NETS[name]())
    return source, *dynamize(source, N, split="nested", input_size=SIZE, **options)


def batch(count=6):
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(1))


def rows(layer, kept):
    """Keep the output channels of a layer or norm, in place."""
    for _, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if tensor.dim():
            tensor.data = tensor.data[kept]
    if getattr(layer, "groups", 1) > 1:
        layer.groups = len(kept)


def sliced(source, share):
    """Slice a network by hand: of each hidden width the share that counts most."""
    net = copy.deepcopy(source)
    for block in (net.b1, net.b2):
        layers = [m for m in getattr(block, "branch", block).modules() if hasattr(m, "weight")]
        layers = [m for m in layers if m is not getattr(getattr(block, "down", None), "0", None)]
        dense = [m for m in layers if isinstance(m, nn.Conv2d) and m.groups == 1]
        cuts = []
        for maker, reader in itertools.pairwise(dense):
            between = layers[layers.index(maker) + 1 : layers.index(reader)]
            norms = reader.weight.detach().transpose(0, 1).flatten(1).norm(dim=1)
            score = between[-1].weight.detach().abs() * norms
            kept = score.argsort(descending=True)[: round(share * len(score))]
            cuts.append(([maker, *between], reader, kept))
        for cut, reader, kept in cuts:
            for layer in cut:
                rows(layer, kept)
            reader.weight.data = reader.weight.data[:, kept]
    return net


@pytest.mark.parametrize("level", slow_unless({0.5}.__contains__, [0.25, 0.5, 0.75, 1.0]))
@pytest.mark.parametrize("name", NETS)
def test_a_level_is_the_source_sliced_by_hand(name, level):
    source, model, _ = converted(name)
    x, path = batch(), level_path(model, level)
    with torch.no_grad():
        expected = sliced(source, level)(x)
        for execution in ("skip", "masked"):
            set_execution(model, execution)
            with force_gates(model, path):
                assert off_by(model(x), expected) <= 1e-5
        assert off_by(freeze(model, level)(x), expected) <= 1e-5


def test_a_bottlenecks_level_keeps_its_square_of_the_middle_layer():
    _, _, table = converted("bottleneck")
    whole = [8 * 8 * 64, 9 * 8 * 8 * 64, 16 * 8 * 64]  # b1: 1x1, 3x3, 1x1
    for k in range(1, 5):
        paid = sum(row.macs for row in table.rows[:k])
        assert paid == whole[0] * k // 4 + whole[1] * k * k // 16 + whole[2] * k // 4


def test_masked_training_along_one_path_is_training_of_the_narrower_network():
    _, model, _ = converted("bottleneck")
    path, x = level_path(model, 0.5), batch()
    grads = []
    for run in (force_gates, along_path):
        own = copy.deepcopy(model).train()
        with run(own, path):
            own(x).square().mean().backward()
        grads.append({n: p.grad for n, p in own.named_parameters()})
        block = multi_path_blocks(own)[0]
        grads[-1]["statistics"] = block.body.get_submodule("branch.4").running_mean[:4]
    masked, narrow = grads
    for name, gradient in narrow.items():
        if gradient is not None and ".controller." not in name:
            assert off_by(masked[name], gradient) <= 1e-4, name


@pytest.mark.parametrize("split", ["exact", "nested"])
def test_a_conversion_is_in_the_sources_mode(split):
    model, _ = dynamize(seasoned(NETS["bottleneck"]()), 2, split=split, input_size=SIZE)
    assert not any(module.training for module in model.modules())


def test_gates_nest_and_the_resource_loss_moves_them():
    _, model, table = converted("inverted")
    model.train()
    with record_paths(model) as paths:
        model(batch(64))
    gates = paths.gates
    first, second = gates.detach().split(table.sizes, 1)
    assert all(torch.equal(part, part.cummin(1).values) for part in (first, second))
    assert (second[:, 0] == 1).all()  # it has no shortcut
    macs = torch.tensor([row.macs for row in table.rows]).double()
    assert torch.equal(table.flops(gates), gates.double() @ macs)
    resource_loss(paths, table, 0.2).backward()
    assert all(c.w3.bias.grad.abs().sum() > 0 for c in controllers(model))


def test_a_table_counts_what_runs_and_makes_a_round_trip():
    _, _, table = converted("basic")
    assert FlopsTable.from_json(table.to_json()) == table
    gates = torch.tensor([[1.0, 0, 1, 1] * 2, [1.0, 0, 0, 0] * 2])
    assert table.flops(gates)[0] == table.flops(gates)[1]
    soft = torch.tensor([[1.0, 1, 0, 0] * 2], requires_grad=True)
    table.flops(soft).sum().backward()
    assert soft.grad.flatten().tolist() == [float(row.macs) for row in table.rows]


def test_controllers_start_at_the_rate_that_they_are_asked_for():
    _, model, _ = converted("basic", gate=GateConfig(init_rate=0.6))
    model.train()
    with record_paths(model) as paths:
        model(batch(2000))
    assert paths.execution_rates().detach() == pytest.approx(0.6, abs=0.03)


def test_levels_train_keep_statistics_and_are_saved(tmp_path):
    _, model, _ = converted("bottleneck")
    model.train()
    level_losses(model, batch(), torch.arange(6) % 5, step=1).total.backward()
    model.eval()
    estimate_levels(model, [batch(32)], [0.25, 0.5, 1.0])
    x = batch()
    with torch.no_grad(), at_level(model, 0.5):
        half = model(x)
    with torch.no_grad():
        assert off_by(freeze(model, 0.5)(x), half) <= 1e-5
    save(model, tmp_path)
    loaded, table = load(tmp_path, seasoned(NETS["bottleneck"](), seed=3))
    assert table.nested
    with torch.no_grad(), at_level(loaded, 0.5):
        assert torch.equal(loaded(x), half)


@pytest.mark.slow
def test_a_search_a_cascade_and_prepared_forms():
    _, model, table = converted("bottleneck")
    labelled = [(batch(24), torch.arange(24) % 5)]
    path = search_levels(model, labelled, 0.6)
    assert table.network_flops(path[None])[0] - table.controllers <= 0.6 * table.dense_total
    estimate_levels(model, [batch(32)], [0.25, 1.0])
    cascade = Cascade.fit(model, labelled, levels=(0.25, 1.0), flops_ratio=0.9)
    x = batch()
    with torch.no_grad():
        assert off_by(prepare(cascade, x)(x), cascade(x)) <= 1e-4
        fast = prepare(model, x, autotune=False)
        gates = (torch.rand(6, 8) < 0.7).float()
        with force_gates(model, gates):
            expected = model(x)
        with force_gates(fast, gates):
            assert off_by(fast(x), expected) <= 1e-4


def test_statistics_are_estimated_of_what_runs():
    _, model, _ = converted("bottleneck")
    block = multi_path_blocks(model)[0]
    norm = block.body.get_submodule("branch.4")
    before = norm.running_mean.clone()
    with force_gates(model, level_path(model, 0.5)):
        reestimate_norms(model, [batch(16)], count="running")
    assert not torch.equal(norm.running_mean[:4], before[:4])
    assert torch.equal(norm.running_mean[4:], before[4:])


# PyTorch 2.6 says so of graphs that it exports itself.
@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:Attempted to insert a get_attr", "ignore:Node .* does not reference"
)
def test_other_tools_run_it():
    _, model, _ = converted("bottleneck")
    x, path = batch(4), level_path(model, 0.5)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        with force_gates(model, path):
            expected = model(x)
            exported = torch.export.export(model, (x,)).module()
            assert off_by(exported(x), expected) <= 1e-5
            assert off_by(compiled(x), expected) <= 1e-5
        with force_gates(copied, path):
            assert torch.equal(copied(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "vit_b_16"])
def test_real_networks(name):
    size = (3, 224, 224) if name.startswith("vit") else (3, 64, 64)
    source = getattr(models, name)(weights=None).eval()
    for layer in (m for m in source.modules() if isinstance(m, nn.Linear)):
        nn.init.normal_(layer.weight, std=0.02)  # a ViT's head is zero
    model, table = dynamize(source, 4, split="nested", input_size=size)
    assert set(table.blocks) - set(table.nested) <= {"features.1"}  # without a layer to make it
    x = torch.randn(2, *size)
    with torch.no_grad():
        for execution in ("skip", "masked"):
            set_execution(model, execution)
            with force_gates(model, True):
                assert off_by(model(x), source(x)) <= 1e-4
        set_execution(model, "skip")
        with force_gates(model, level_path(model, 0.5)):
            assert off_by(freeze(model, 0.5)(x), model(x)) <= 1e-5


def test_gates_after_a_gap_are_ignored_in_every_form():
    _, model, _ = converted("inverted")
    found, x = controllers(model.eval()), batch()
    assert {controller.keep_one for controller in found} == {False, True}
    gapped = torch.tensor([0.0, 1.0, 1.0, 0.0]).repeat(len(found))
    # Where one has to run, the first one does, whatever its gate.
    rows = [[1.0, 1.0, 1.0, 0.0] if c.keep_one else [0.0] * 4 for c in found]
    meant = torch.tensor(rows).flatten()
    with torch.no_grad():
        with force_gates(model, meant):
            expected = model(x)
        answers = [freeze(model, gapped)(x)]
        for execution, gates in itertools.product(
            ("skip", "masked"), (gapped, gapped.expand(len(x), -1))
        ):
            set_execution(model, execution)
            with force_gates(model, gates):
                answers.append(model(x))
                with record_paths(model) as paths:
                    answers.append(model(x))
            assert paths.gates.equal(meant.expand(len(x), -1))
    for answer in answers:
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
