"""The losses are the paper's formulas, over the images of all processes."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from small_nets import IMAGE, basic_net, images
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes, needs_gloo

from dmnn_convert import (
    ArgumentError,
    DMNNLoss,
    FlopsTable,
    GateMismatchError,
    Paths,
    category_loss,
    dynamize,
    record_paths,
    resource_loss,
    stage_weights,
)
from dmnn_convert.flops.rows import FixedRow, Row, Trunk
from dmnn_convert.loss.resource import execution_loss


def made(sizes=(2, 3)):
    """Sub-blocks of 10, 20, 30, ... MACs, and a trunk of 100 in the last block."""
    places = [(block, n) for block, size in enumerate(sizes) for n in range(size)]
    rows = [
        Row(f"b{block}", n, 10 * (i + 1), 1, (1,), (1,), block)
        for i, (block, n) in enumerate(places)
    ]
    trunk = Trunk(f"b{len(sizes) - 1}", 100, 1)
    return FlopsTable(tuple(rows), (trunk,), (FixedRow("stem", 7, 1),), 400, 9, (1,))


def paths_of(gates, table, categories=()):
    paths = Paths(table.sizes, table)
    for position, part in enumerate(gates.split(table.sizes, 1)):
        paths.add(position, part, categories[position] if categories else None)
    return paths


TABLE = made()
GATES = torch.tensor([[1.0, 0, 0, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 0, 1, 1, 1]])
RATES = (4 / 8, 4 / 12)
FLOPS = (10 + (30 + 140) + 0 + (10 + 220)) / 4
GATED = 150 + 100


# --- resource loss ----------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.1, 0.5, 1, 1.0])
def test_resource_loss_by_hand(target):
    expected = sum((target - rate) ** 2 for rate in RATES) + (FLOPS / GATED - target) ** 2
    got = resource_loss(paths_of(GATES, TABLE), TABLE, target)
    assert got.shape == ()
    assert got.item() == pytest.approx(expected, rel=1e-6)


def test_execution_loss_by_hand():
    assert execution_loss(torch.tensor([0.5, 1.0, 0.25]), 0.5).item() == 0.25 + 0.0625


def test_resource_loss_of_several_batches_is_that_of_all_images():
    paths = Paths(TABLE.sizes, TABLE)
    for rows in (GATES[:1], GATES[1:]):
        for position, part in enumerate(rows.split(TABLE.sizes, 1)):
            paths.add(position, part, None)
    whole = resource_loss(paths_of(GATES, TABLE), TABLE, 0.3)
    assert resource_loss(paths, TABLE, 0.3).item() == pytest.approx(whole.item())


def test_resource_loss_is_zero_where_everything_runs_and_shall():
    assert resource_loss(paths_of(torch.ones(3, 5), TABLE), TABLE, 1.0) == 0


def test_resource_loss_passes_gradcheck():
    gates = torch.rand(3, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: resource_loss(paths_of(g, TABLE), TABLE, 0.4), gates)


@pytest.mark.parametrize(("target", "sign"), [(0.1, 1), (0.9, -1)])
def test_a_gradient_step_leads_towards_the_target(target, sign):
    gates = torch.full((4, 5), 0.5, dtype=torch.float64, requires_grad=True)
    resource_loss(paths_of(gates, TABLE), TABLE, target).backward()
    assert (sign * gates.grad > 0).all()


@pytest.mark.parametrize(
    "target", [0, -0.5, 1.01, 2, True, False, float("nan"), float("inf"), "0.5", None]
)
@pytest.mark.parametrize(
    "call",
    [
        lambda target: resource_loss(paths_of(GATES, TABLE), TABLE, target),
        lambda target: DMNNLoss(TABLE, target=target),
    ],
    ids=["resource_loss", "DMNNLoss"],
)
def test_targets_outside_their_range_are_rejected(call, target):
    with pytest.raises(ArgumentError, match="target="):
        call(target)


@pytest.mark.parametrize("sizes", [(3, 2), (5,), (2, 2), (2, 3, 1)])
def test_the_table_of_another_model_is_rejected(sizes):
    with pytest.raises(GateMismatchError, match=r"\[2, 3\]"):
        resource_loss(paths_of(GATES, TABLE), made(sizes), 0.5)


# --- category loss ----------------------------------------------------------------------------


def heads(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, generator=generator) for _ in range(2)]


LABELS = torch.tensor([0, 2, 1, 2])


def test_category_loss_by_hand():
    logits = heads()
    paths = paths_of(GATES, TABLE, logits)
    expected = 0.0
    for weight, block in zip((0.5, 2.0), logits, strict=True):
        for row, label in zip(block.tolist(), LABELS.tolist(), strict=True):
            total = math.log(sum(math.exp(v) for v in row))
            expected += weight * (total - row[label]) / 4
    assert category_loss(paths, LABELS, [0.5, 2.0]).item() == pytest.approx(expected, rel=1e-5)
    assert category_loss(paths, LABELS, [0.0, 1.0]) == F.cross_entropy(logits[1], LABELS)


@pytest.mark.parametrize("weights", [[], [1.0], [1.0] * 3])
def test_category_loss_takes_a_weight_for_each_block(weights):
    with pytest.raises(ArgumentError, match=f"{len(weights)} weights for 2 blocks"):
        category_loss(paths_of(GATES, TABLE, heads()), LABELS, weights)


@pytest.mark.parametrize("wrong", [-1, 3, 100])
def test_category_labels_out_of_range_are_rejected(wrong):
    labels = torch.tensor([0, wrong, 1, 2])
    with pytest.raises(ArgumentError, match="3 categories"):
        category_loss(paths_of(GATES, TABLE, heads()), labels, [1.0, 1.0])


@pytest.mark.slow
def test_stage_weights_of_resnet50_are_the_papers():
    _, table = dynamize(torchvision.models.resnet50(), input_size=(3, 64, 64), inplace=True)
    expected = [1e-4] * 3 + [1e-3] * 4 + [1e-2] * 6 + [1e-1] * 3
    assert stage_weights(table) == pytest.approx(expected)
    assert stage_weights(table, 1.0, 2.0)[-1] == 8


def test_stage_weights_stop_at_the_papers_fourth_stage():
    rows = tuple(dataclasses.replace(row, stage=row.stage + 4) for row in TABLE.rows)
    deep = dataclasses.replace(TABLE, rows=rows)
    assert stage_weights(deep) == pytest.approx([1e-1] * len(deep.stages))


# --- the total --------------------------------------------------------------------------------

LOGITS = torch.tensor([[2.0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 3, 0], [1, 0, 0, 0]])
CLASSES = torch.tensor([3, 1, 0, 2])
MAP = [0, 1, 1, 2]


@pytest.mark.parametrize("alphas", [(1.0, 1.0, 1.0), (0.5, 2.0, 3.0), (0.0, 0.0, 1.0)])
def test_the_parts_add_up(alphas):
    paths = paths_of(GATES, TABLE, heads())
    loss = DMNNLoss(TABLE, target=0.5, categories=MAP, alphas=alphas)
    parts = loss.parts(LOGITS, CLASSES, paths)
    assert parts.classification == F.cross_entropy(LOGITS, CLASSES)
    assert parts.resource == resource_loss(paths, TABLE, 0.5)
    assert parts.category == category_loss(paths, torch.tensor([2, 1, 0, 1]), stage_weights(TABLE))
    values = (parts.category, parts.resource, parts.classification)
    expected = sum(alpha * value.item() for alpha, value in zip(alphas, values, strict=True))
    assert parts.total.item() == pytest.approx(expected)
    assert loss(LOGITS, CLASSES, paths) == parts.total


def test_without_categories_there_is_no_category_loss():
    parts = DMNNLoss(TABLE, target=0.5).parts(LOGITS, CLASSES, paths_of(GATES, TABLE))
    assert parts.category == 0
    assert parts.total.item() == pytest.approx((parts.resource + parts.classification).item())


def test_other_classification_losses_and_weights_can_be_given():
    paths = paths_of(GATES, TABLE, heads())
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    loss = DMNNLoss(
        TABLE, target=0.5, categories=MAP, category_weights=[1, 2], classification=smooth
    )
    parts = loss.parts(LOGITS, CLASSES, paths)
    assert parts.classification == smooth(LOGITS, CLASSES)
    assert parts.category == category_loss(paths, torch.tensor([2, 1, 0, 1]), [1, 2])


@pytest.mark.parametrize("weights", [[0.0, 1.0], (0.0, 1.0), torch.tensor([0.0, 1.0])])
def test_category_weights_may_be_any_sequence(weights):
    paths = paths_of(GATES, TABLE, heads())
    loss = DMNNLoss(TABLE, target=0.5, categories=torch.tensor(MAP), category_weights=weights)
    expected = F.cross_entropy(heads()[1], torch.tensor([2, 1, 0, 1]))
    assert loss.parts(LOGITS, CLASSES, paths).category.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("wrong", [4, 5])
def test_classes_outside_the_category_map_are_rejected(wrong):
    loss = DMNNLoss(TABLE, target=0.5, categories=MAP)
    labels = torch.tensor([0, wrong, 1, 2])
    with pytest.raises(ArgumentError, match="category map"):
        loss(torch.zeros(4, 6), labels, paths_of(GATES, TABLE, heads()))


def test_the_category_map_moves_but_is_no_weight():
    loss = DMNNLoss(TABLE, target=0.5, categories=MAP)
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []
    assert loss.to("meta").categories.is_meta


def test_trains_a_converted_net_towards_its_target():
    model, table = dynamize(basic_net(), 2, input_size=IMAGE, num_categories=3)
    criterion = DMNNLoss(table, target=0.3, categories=[0, 1, 1, 2, 2], alphas=(1.0, 10.0, 1.0))
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    ratios = []
    for step in range(40):
        with record_paths(model) as paths:
            logits = model(images(32, seed=step))
        ratios.append(paths.flops_ratio().item())
        optimizer.zero_grad()
        criterion(logits, torch.arange(32) % 5, paths).backward()
        optimizer.step()
    assert ratios[0] > 0.8
    assert sum(ratios[-10:]) / 10 == pytest.approx(0.3, abs=0.1)


# --- two processes ----------------------------------------------------------------------------


class SoftGates(nn.Module):
    """Stands for a model: soft gates, for which no noise must be shared."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 5)
        with torch.no_grad():
            self.linear.weight.copy_(torch.linspace(-1, 1, 30).view(5, 6))
            self.linear.bias.copy_(torch.linspace(-0.5, 1, 5))

    def forward(self, x):
        return self.linear(x).sigmoid()


def inputs():
    return torch.linspace(-2, 3, 48).view(8, 6).sin()


def loss_and_gradients(model, x):
    loss = resource_loss(paths_of(model(x), TABLE), TABLE, 0.2)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def on_one_of_two(rank, folder, split):
    part = (inputs()[:split], inputs()[split:])[rank]
    result = loss_and_gradients(DistributedDataParallel(SoftGates()), part)
    torch.save(result, f"{folder}/{rank}.pt")


@needs_gloo
@pytest.mark.slow
def test_two_processes_give_what_one_gives_with_all_images(tmp_path):
    expected = loss_and_gradients(SoftGates(), inputs())
    # The processes hold different numbers of images, so that averages of averages would differ.
    in_two_processes(on_one_of_two, tmp_path, 3)
    for rank in (0, 1):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for value, whole in zip(got, expected, strict=True):
            torch.testing.assert_close(value, whole)


def test_paths_of_other_images_than_the_logits_are_refused():
    with pytest.raises(GateMismatchError, match="one forward pass at a time"):
        DMNNLoss(TABLE, target=0.5)(LOGITS[:1], CLASSES[:1], paths_of(GATES, TABLE))
