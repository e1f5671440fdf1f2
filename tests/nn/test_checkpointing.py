"""Gradient checkpointing: gradients, gates and records are those of the plain run."""

import copy
from inspect import signature

import pytest
import torch
from small_nets import IMAGE, Net, basic, bottleneck, images
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from dmnn_convert import DMNNLoss, GateConfig, dynamize, force_gates, record_paths
from dmnn_convert.errors import TrainingError
from dmnn_convert.nn import controllers, multi_path_blocks


class Deep(Net):
    """Three blocks in a row, run by hand, in checkpoints, or as a sequence."""

    def __init__(self):
        super().__init__(basic(8, 8), nn.Sequential(bottleneck(8, 8, 16), basic(16, 16)))


def deep(**options):
    model, table = dynamize(Deep(), 2, split="exact", input_size=IMAGE, num_categories=3, **options)
    for controller in controllers(model):
        nn.init.normal_(controller.w3.weight)
    return model.train(), table


def through(model, x, call):
    x = call(model.b1, model.stem(x))
    for block in model.b2:
        x = call(block, x)
    return model.fc(x.mean((2, 3)))


def plain(model, x):
    return through(model, x, lambda block, x: block(x))


def by_hand(model, x):
    return through(model, x, lambda block, x: checkpoint(block, x, use_reentrant=False))


def without_early_stop(model, x):
    with torch.utils.checkpoint.set_checkpoint_early_stop(False):
        return by_hand(model, x)


def two_in_one(model, x):
    y = checkpoint(lambda x: model.b2(model.b1(x)), model.stem(x), use_reentrant=False)
    return model.fc(y.mean((2, 3)))


def sequential(model, x):
    blocks = nn.Sequential(model.b1, *model.b2)
    y = checkpoint_sequential(blocks, 2, model.stem(x), use_reentrant=False)
    return model.fc(y.mean((2, 3)))


WAYS = {
    "by hand": by_hand,
    "to the end": without_early_stop,
    "several": two_in_one,
    "sequential": sequential,
}
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def step(model, table, run, batches=(0,), recorded=True):
    """Return what the passes gave, then the gradients of their common loss."""
    torch.manual_seed(1)
    loss, seen = 0.0, []
    criterion = DMNNLoss(table, target=0.3)
    for seed in batches:
        x = images(6, seed=seed).requires_grad_()
        if recorded:
            with record_paths(model) as paths:
                logits = run(model, x)
            loss = loss + criterion(logits, LABELS, paths) + paths.category_logits[1].sum()
            seen += [logits, paths.gates]
        else:
            logits = run(model, x)
            loss = loss + nn.functional.cross_entropy(logits, LABELS)
            seen.append(logits)
    loss.backward()
    after = torch.rand(3)  # the state of the random numbers
    return [*seen, after, *(p.grad for p in model.parameters())]


def assert_same(got, wanted):
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_gradients_are_those_of_the_plain_run(way):
    model, table = deep()
    other = copy.deepcopy(model)
    wanted = step(model, table, plain)
    layers = [layer for c in controllers(model) for layer in (c.w1, c.w2, c.w3) if layer]
    assert all(layer.weight.grad.any() for layer in layers)
    assert_same(step(other, table, way), wanted)


def test_passes_that_wait_for_one_another_are_not_mixed():
    model, table = deep()
    other = copy.deepcopy(model)
    # The same images twice: only the noise tells the passes apart.
    assert_same(step(other, table, by_hand, (0, 3, 0)), step(model, table, plain, (0, 3, 0)))


def test_noise_of_a_generator_of_its_own_is_not_drawn_again():
    model, table = deep()
    for i, controller in enumerate(controllers(model)):
        controller.generator = torch.Generator().manual_seed(i)
    other = copy.deepcopy(model)
    wanted = step(model, table, plain)
    assert_same(step(other, table, by_hand), wanted)
    for one, two in zip(controllers(model), controllers(other), strict=True):
        assert torch.equal(one.generator.get_state(), two.generator.get_state())


def test_noise_survives_without_the_state_of_random_numbers():
    model, table = deep()
    other = copy.deepcopy(model)

    def forgetful(model, x):
        options = {"use_reentrant": False, "preserve_rng_state": False}
        return through(model, x, lambda block, x: checkpoint(block, x, **options))

    got, wanted = step(other, table, forgetful), step(model, table, plain)
    assert_same(got[:2] + got[3:], wanted[:2] + wanted[3:])


@pytest.mark.parametrize("training", [True, False])
def test_forced_gates_are_forced_again(training):
    model, table = deep()
    model.train(training)
    other = copy.deepcopy(model)

    def forced(run):
        def within(model, x):
            with force_gates(model, 0.5, seed=4):
                return run(model, x)

        return within

    wanted = step(model, table, forced(plain), recorded=False)
    assert_same(step(other, table, forced(by_hand), recorded=False), wanted)


def test_evaluation_skips_alike():
    model, table = deep(gate=GateConfig(init_rate=0.5))
    model.eval()
    other = copy.deepcopy(model)
    assert_same(
        step(other, table, by_hand, recorded=False), step(model, table, plain, recorded=False)
    )


@pytest.mark.parametrize("what", ["block", "model"])
def test_the_reentrant_form_is_refused(what):
    model, _ = deep()

    def call(block, x):
        return checkpoint(block, x, use_reentrant=True)

    x = images(6).requires_grad_()
    y = through(model, x, call) if what == "block" else call(model, x)
    with pytest.raises(TrainingError, match="use_reentrant=False"):
        y.sum().backward()
    model.zero_grad()
    plain(model, x).sum().backward()  # and nothing is left of it


def test_timms_checkpointing():
    timm = pytest.importorskip("timm")
    if "channels" not in signature(timm.models.resnet.ResNet).parameters:
        pytest.skip("timm's ResNets of this release take no channels")
    torch.manual_seed(0)
    net = timm.create_model(
        "resnet18", num_classes=5, block_args={}, layers=(1, 2, 1, 1), channels=(8, 8, 8, 8)
    )
    model, table = dynamize(net, 2, split="exact", input_size=(3, 32, 32), num_categories=3)
    for controller in controllers(model):
        nn.init.normal_(controller.w3.weight)
    other = copy.deepcopy(model.train())
    other.set_grad_checkpointing()
    called = []
    for block in multi_path_blocks(other):
        block.register_forward_hook(lambda *_: called.append(1))

    def run(model, x):
        return model(nn.functional.interpolate(x, 32))

    wanted, got = step(model, table, run), step(other, table, run)
    assert len(called) > len(multi_path_blocks(other))
    # Norms see each batch once more, which does not change what they give in training.
    assert_same(got, wanted)
