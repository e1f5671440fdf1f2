"""Loaders that yield dicts and models that return outputs: every call takes them as they come."""

from collections import OrderedDict, UserDict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from quick import one_in
from small_nets import NETS, images, seasoned
from torch import nn

from dmnn_convert import (
    ArgumentError,
    Cascade,
    DMNNLoss,
    calibrate,
    curve,
    dynamize,
    estimate_levels,
    evaluate,
    evaluate_dense,
    explain,
    force_gates,
    freeze,
    level_losses,
    reconstruct,
    record_paths,
    reestimate_norms,
    search_levels,
    set_budget,
)
from dmnn_convert.foreign import images_and_labels
from dmnn_convert.nn import controllers

X, Y = images(24), torch.arange(24) % 5
PAIRS = [(X[:12], Y[:12]), (X[12:], Y[12:])]


@dataclass
class Output:
    """What transformers returns, in short."""

    loss: object
    logits: torch.Tensor


class Wrapped(nn.Module):
    """A network that returns its logits among other things."""

    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, pixel_values):
        return self.form(self.net(pixel_values))


FORMS = {
    "dict": lambda logits: {"logits": logits},
    "ordered": lambda logits: OrderedDict(loss=None, logits=logits),
    "output": lambda logits: Output(None, logits),
}
BATCHES = {
    "transformers": lambda x, y: {"pixel_values": x, "labels": y},
    "datasets": lambda x, y: UserDict(image=x, label=y, names=["a"] * len(y)),
    "pair": lambda x, y: [x, y, "more"],
}


def converted(form=None, net="basic"):
    torch.manual_seed(0)
    source = seasoned(NETS[net]())
    if form is not None:
        source = Wrapped(source, form)
    model, table = dynamize(source.eval(), 2, split="exact", input_size=(3, 8, 8))
    for controller in controllers(model):
        nn.init.normal_(controller.w1.weight)
        nn.init.normal_(controller.w3.weight)
    return source, model, table


def results(form, batch):
    """Return what every call makes of a network and a loader, as plain numbers."""
    source, model, table = converted(form)
    loader = [batch(x, y) for x, y in PAIRS]
    calibrate(model, loader)
    reestimate_norms(model, loader)
    errors = reconstruct(model, source, loader)
    model.eval()
    found = evaluate(model, table, loader).top1, evaluate_dense(source, loader).top1
    estimate_levels(model, loader, (0.5, 1.0))
    path = search_levels(model, loader, 0.9)
    cascade = Cascade.fit(model, loader, levels=(0.5, 1.0), flops_ratio=1.5)
    explained = explain(cascade, loader, []).evaluation.top1
    rows = [row.top1 for row in curve(model, loader, ("level",)).rows]
    with torch.no_grad():
        answers = cascade(X)
    with force_gates(model, True), record_paths(model) as paths:
        loss = DMNNLoss(table, target=0.5)(model(X), Y, paths).item()
    step = level_losses(model, X, Y, (0.5, 1.0), step=1)
    budget = set_budget(model, loader, 0.8)
    ends = [path.tolist(), answers, loss, step.total.item(), budget, sorted(errors.values())]
    return [*found, explained, rows, *ends]


@pytest.fixture(scope="module")
def plain():
    return results(None, lambda x, y: (x, y))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "batch"),
    one_in(3, [("dict", "transformers"), ("output", "datasets"), ("ordered", "pair")], 1),
)
def test_every_call_takes_them(plain, form, batch):
    ours = results(FORMS[form], BATCHES[batch])
    torch.testing.assert_close(ours, plain)


def test_logits_by_key_and_by_function():
    source, model, table = converted(lambda logits: {"scores": (logits, 1)})
    take = {"logits": lambda output: output["scores"][0]}
    assert evaluate(model, table, PAIRS, **take).top1 == evaluate_dense(source, PAIRS, **take).top1
    with record_paths(model) as paths:
        output = model(X)
    own = DMNNLoss(table, target=0.5, **take).parts(output, Y, paths).classification
    assert own.item() == pytest.approx(F.cross_entropy(output["scores"][0], Y).item())
    assert level_losses(model, X, Y, (0.5, 1.0), step=0, **take).all_on > 0
    source, model, table = converted(lambda logits: {"scores": logits})
    assert evaluate(model, table, PAIRS, logits="scores").images == 24
    for call in (
        lambda: evaluate(model, table, PAIRS),
        lambda: DMNNLoss(table, target=0.5)(output, Y, paths),
        lambda: level_losses(model, X, Y, (0.5, 1.0), step=0),
    ):
        with pytest.raises(ArgumentError, match=r"returned dict of scores .*Give logits="):
            call()
    cascade = Cascade([freeze(model, 0.5), freeze(model, 1.0)], [0.5])
    with pytest.raises(ArgumentError, match="not logits"):
        cascade(X)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"pixels": X, "labels": Y}, "dict of pixels, labels, with no tensor of images"),
        ({"image": X, "x": X, "y": Y}, "more than one tensor of images: image and x"),
        ({"x": X, "label": ["a"]}, "no tensor of labels"),
        ({"x": X, "y": Y.float()}, "one integer class"),
        ({}, "a dict of nothing"),
    ],
)
def test_dicts_that_do_not_say_what_they_hold(batch, words):
    with pytest.raises(ArgumentError, match=words):
        images_and_labels(batch, "evaluate")


# --- soft labels ------------------------------------------------------------------------------


def test_soft_labels_with_and_without_categories():
    _, model, table = converted()
    soft = F.one_hot(Y, 5).float().lerp(F.one_hot((Y + 1) % 5, 5).float(), 0.3)
    with record_paths(model) as paths:
        logits = model(X)
    parts = DMNNLoss(table, target=0.5, categories=None).parts(logits, soft, paths)
    expected = -(soft * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(parts.classification, expected)
    assert parts.category == 0


def test_soft_labels_of_categories_are_the_sums_of_their_classes():
    torch.manual_seed(0)
    config = {"split": "exact", "input_size": (3, 8, 8), "num_categories": 2}
    model, table = dynamize(seasoned(NETS["basic"]()), 2, **config)
    loss = DMNNLoss(table, target=0.5, categories=[0, 0, 1, 1, 1], category_weights=[1.0] * 8)
    loss.category_weights = [1.0] * len(table.blocks)
    with record_paths(model.train()) as paths:
        logits = model(X)
    hard = loss.parts(logits, Y, paths)
    same = loss.parts(logits, F.one_hot(Y, 5).float(), paths)
    torch.testing.assert_close(same.category, hard.category)
    other = loss.parts(logits, (Y + 1) % 5, paths)
    mixed = F.one_hot(Y, 5).float().lerp(F.one_hot((Y + 1) % 5, 5).float(), 0.25)
    both = loss.parts(logits, mixed, paths)
    torch.testing.assert_close(both.category, 0.75 * hard.category + 0.25 * other.category)
    with pytest.raises(ArgumentError, match="soft labels"):
        loss(logits, mixed[:, :4], paths)


@pytest.mark.parametrize("paths", [None, "paths"])
def test_a_loss_without_paths_says_how_to_record_them(paths):
    _, model, table = converted()
    with pytest.raises(ArgumentError, match="with record_paths"):
        DMNNLoss(table, target=0.5)(model(X), Y, paths)
