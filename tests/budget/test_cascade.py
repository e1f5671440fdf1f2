"""Cascades: the networks that are asked, their cost, and thresholds that meet a budget."""

import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from small_nets import NETS, seasoned
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dmnn_convert
from dmnn_convert import ArgumentError, Cascade, RecordingError, dynamize, freeze, record_exits
from dmnn_convert.budget.confidence import CONFIDENCES
from dmnn_convert.budget.fit import AllAnswers, best_choice, candidates
from dmnn_convert.budget.thresholds import Answers, best_thresholds, figures_at


class Says(nn.Module):
    """Looks its logits up, and counts whom it was asked about."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", logits)
        self.asked = []

    def forward(self, images):
        rows = images[:, 0].long()
        self.asked += rows.tolist()
        return self.logits[rows]


def logits_of(*p):
    """Logits of two classes, whose first one has probability p."""
    first = torch.tensor(p)
    return torch.stack([first, 1 - first], 1).log()


IMAGES = torch.arange(4.0)[:, None]


def test_only_images_below_the_threshold_are_asked_about_again():
    small, large = Says(logits_of(0.9, 0.6, 0.2, 0.5)), Says(logits_of(0.1, 0.1, 0.1, 0.1))
    cascade = Cascade([small, large], [0.5])  # margins are .8, .2, .6, 0
    with record_exits(cascade) as exits:
        answer = cascade(IMAGES)
    assert (small.asked, large.asked) == ([0, 1, 2, 3], [1, 3])
    assert exits.levels.tolist() == [0, 1, 0, 1]
    expected = torch.stack([small.logits[0], large.logits[1], small.logits[2], large.logits[3]])
    assert torch.equal(answer, expected)


def test_three_networks_and_the_mean_of_all_that_were_asked():
    nets = [Says(logits_of(0.9, 0.6)), Says(logits_of(0.1, 0.7)), Says(logits_of(0.1, 0.2))]
    cascade = Cascade(nets, [0.5, 0.5], mean=True)
    answer = cascade(IMAGES[:2]).softmax(-1)[:, 0]
    assert [n.asked for n in nets] == [[0, 1], [1], [1]]
    torch.testing.assert_close(answer, torch.tensor([0.9, (0.6 + 0.7 + 0.2) / 3]))


def test_entropy_and_a_function_of_the_users():
    logits = logits_of(0.5, 0.9)
    assert CONFIDENCES["entropy"](logits)[0] == pytest.approx(0, abs=1e-6)
    p = torch.tensor([0.9, 0.1])
    entropy = float(-(p * p.log2()).sum())
    assert CONFIDENCES["entropy"](logits)[1] == pytest.approx(1 - entropy, abs=1e-6)
    large = Says(logits_of(0.3, 0.3))
    cascade = Cascade([Says(logits), large], [0.5], confidence=lambda y: y[:, 0].exp() - 0.1)
    cascade(IMAGES[:2])
    assert large.asked == [0]


def test_answers_of_detectors_are_lists_of_one_item_an_image():
    class Detector(nn.Module):
        def __init__(self, score):
            super().__init__()
            self.score = score

        def forward(self, images):
            return [{"scores": self.score * image.mean()[None]} for image in images]

    def best(found):
        return torch.stack([one["scores"].max() for one in found])

    cascade = Cascade([Detector(1.0), Detector(10.0)], [0.5], confidence=best)
    found = cascade([torch.ones(3, 4, 4), torch.zeros(3, 2, 2) + 0.1])
    assert [float(one["scores"]) for one in found] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_leaves_the_thresholds_as_they_are(dtype):
    cascade = Cascade([nn.Flatten(), nn.Flatten()], [0.999])
    before = cascade.thresholds.clone()
    assert torch.equal(cascade.to(dtype).thresholds, before)
    assert torch.equal(cascade.float().thresholds, before)


def test_nan_stays_nan():
    cascade = Cascade([Says(torch.full((1, 2), torch.nan)), Says(logits_of(0.9))], [0.5])
    assert cascade(IMAGES[:1]).isnan().all()


def test_no_image_at_all():
    cascade = Cascade([Says(logits_of(0.9)), Says(logits_of(0.9))], [0.5])
    assert cascade(IMAGES[:0]).shape == (0, 2)


def test_thresholds_by_hand():
    """Four images; the cheap network is right about the two that it is surest of."""
    cheap = Answers(torch.tensor([0.9, 0.8, 0.2, 0.1]), torch.tensor([1.0, 1, 0, 0]), 1.0)
    large = Answers(torch.tensor([0.9, 0.9, 0.9, 0.9]), torch.tensor([0.0, 1, 1, 1]), 2.0)
    choice = best_thresholds([cheap, large], 2.0)  # all ask the first, two of four the second
    assert (choice.top1, choice.macs, choice.shares) == (100.0, 2.0, (0.5, 0.5))
    assert 0.2 < choice.thresholds[0] < 0.85
    assert best_thresholds([cheap, large], 1.6).top1 == 75.0  # one of four, the least sure
    assert best_thresholds([cheap, large], 1.0).shares == (1.0, 0.0)
    assert best_thresholds([cheap, large], 0.9) is None


@pytest.fixture(scope="module")
def trained():
    """A converted network, and images with labels that its whole width mostly gives."""
    torch.manual_seed(0)
    model, table = dynamize(seasoned(NETS["basic"]()), 4, split="exact", input_size=(3, 8, 8))
    images = torch.randn(200, 3, 8, 8)
    with torch.no_grad():
        labels = model.eval()(images).argmax(1)  # gates are mostly on at first
    return model, table, DataLoader(TensorDataset(images, labels), 50)


def test_fit_meets_the_budget_and_says_what_it_reaches(trained):
    model, table, loader = trained
    cascade = Cascade.fit(model, loader, levels=(0.25, 1.0), flops_ratio=0.8)
    fitted = cascade.fitted
    assert fitted.flops_ratio <= 0.8 and fitted.levels == (0.25, 1.0)
    right, cost, count = 0, 0.0, 0
    costs = [float(table.network_flops(torch.ones(1, 8)[:, :]) - table.controllers)]
    quarter = torch.tensor([[1.0, 0, 0, 0] * 2])
    costs.insert(0, float(table.network_flops(quarter) - table.controllers))
    for images, labels in loader:
        with record_exits(cascade) as exits, torch.no_grad():
            right += int((cascade(images).argmax(1) == labels).sum())
        cost += float(costs[0] * len(labels) + costs[1] * exits.levels.sum())
        count += len(labels)
    assert fitted.top1 == pytest.approx(100 * right / count)
    assert fitted.flops_ratio == pytest.approx(cost / count / table.dense_total)
    assert not any("dmnn" in type(m).__module__ for m in cascade.networks.modules())


def test_an_image_alone_gets_the_answer_that_it_gets_in_a_batch(trained):
    model, _, loader = trained
    cascade = Cascade.fit(model, loader, levels=(0.25, 1.0), flops_ratio=0.8)
    images, _ = next(iter(loader))
    with torch.no_grad():
        together = cascade(images)
        alone = torch.cat([cascade(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_without_levels_the_best_of_all_are_chosen(trained):
    model, _, loader = trained
    given = Cascade.fit(model, loader, levels=(0.25, 1.0), flops_ratio=0.8).fitted
    found = Cascade.fit(model, loader, levels=None, flops_ratio=0.8).fitted
    assert found.top1 >= given.top1 and len(found.levels) in (2, 3)
    assert found.flops_ratio <= 0.8


def test_networks_of_the_users_own(trained):
    model, _, loader = trained
    pair = [freeze(model, 0.5), freeze(model, 1.0)]
    cascade = Cascade.fit(pair, loader, flops_ratio=1.2)
    assert cascade.fitted.levels is None and cascade.fitted.flops_ratio <= 1.2


@pytest.mark.filterwarnings("ignore:.torch.jit.(trace|script)")
@pytest.mark.parametrize(
    "export",
    [
        lambda cascade, x: torch.jit.trace(cascade, x, check_trace=False),
        lambda cascade, x: torch.jit.script(cascade),
        lambda cascade, x: torch.export.export(cascade, (x,)),
    ],
)
def test_an_export_would_freeze_what_it_decides(export):
    small, large = Says(torch.zeros(2, 3)), Says(torch.ones(2, 3))
    with pytest.raises(ArgumentError, match=r"deploy\(cascade, .*cascade.networks"):
        export(Cascade([small, large], [0.5]), torch.zeros(2, 3, 4, 4))


def test_bad_input(trained):
    model, _, loader = trained
    images = [batch for batch, _ in loader]
    with pytest.raises(ArgumentError, match="of the dense network's FLOPs"):
        Cascade.fit(model, loader, levels=(0.25, 1.0), flops_ratio=0.01)
    with pytest.raises(ArgumentError, match="with labels"):
        Cascade.fit(model, images, levels=(0.25, 1.0))
    with pytest.raises(ArgumentError, match="two levels or more"):
        Cascade.fit(model, loader, levels=(0.5,))
    with pytest.raises(ArgumentError, match="cannot make it"):
        Cascade.fit(model, loader, levels=(0.3, 1.0))
    with pytest.raises(ArgumentError, match="choose one of 'margin'"):
        Cascade.fit(model, loader, confidence="luck")
    with pytest.raises(ArgumentError, match="same classes"):
        Cascade.fit([freeze(model, 0.5), nn.Sequential(nn.Flatten(), nn.Linear(192, 3))], loader)
    with pytest.raises(ArgumentError, match="has gates"):
        Cascade.fit([freeze(model, 0.5), model], loader)
    with pytest.raises(ArgumentError, match="not logits"):
        Cascade([nn.Identity(), nn.Identity()], [0.5])(torch.randn(2, 3, 4))
    with pytest.raises(ArgumentError, match="one number for each image"):
        Cascade([nn.Identity(), nn.Identity()], [0.5], confidence=lambda y: y.mean())(IMAGES)
    with pytest.raises(ArgumentError, match="two networks or more"):
        Cascade([nn.Identity()], [])
    with pytest.raises(ArgumentError, match="NaN compares with no confidence"):
        Cascade([nn.Identity(), nn.Identity()], [math.nan])
    with pytest.raises(ArgumentError, match=r"what Cascade\.fit returned"), record_exits(model):
        pass
    cascade = Cascade([Says(logits_of(0.9)), Says(logits_of(0.9))], [0.5])
    with record_exits(cascade) as exits, pytest.raises(RecordingError, match="nothing was"):
        _ = exits.levels


def test_freeze_takes_a_level_and_its_norm_statistics(trained):
    model, _, loader = trained
    dmnn_convert.estimate_levels(model, [images for images, _ in loader], [0.5, 1.0])
    images, _ = next(iter(loader))
    with torch.no_grad(), dmnn_convert.at_level(model, 0.5):
        expected = model(images)
    with torch.no_grad():
        torch.testing.assert_close(freeze(model, 0.5)(images), expected, rtol=1e-4, atol=1e-5)
        with dmnn_convert.force_gates(model, dmnn_convert.level_path(model, 0.25)):
            without = model(images)
        torch.testing.assert_close(freeze(model, 0.25)(images), without, rtol=1e-4, atol=1e-5)


def test_thresholds_spend_the_budget():
    """One image more is right with less; that is chance, and forty of 400 are not."""
    order = torch.linspace(0.9, 0.1, 400)
    knows = torch.arange(400) < 200
    cheap = Answers(order, knows.float(), 1.0)
    for lost, spent in ((1, 1.0), (40, 0.0)):
        large = knows.float()
        large[-lost:], large[:200] = 0.0, 0.0
        worse = Answers(order, large, 2.0)
        cheap.right[-lost:] = 1.0
        choice = best_thresholds([cheap, worse], 1.0 + 2.0 * 0.25)
        assert choice.shares[1] == (0.25 if spent else 0.0), lost
        assert choice.macs == 1.0 + 2.0 * choice.shares[1]


def test_a_triple_of_thresholds_is_the_best_of_those_that_spend_the_budget():
    draw = functools.partial(torch.rand, 38, generator=torch.Generator().manual_seed(0))
    sound = ((0.5, 1.0), (0.7, 2.0), (0.9, 4.0))
    answers = [Answers(draw(), (draw() < right).float(), macs) for right, macs in sound]
    choice = best_thresholds(answers, 3.7)
    steps = [[*sorted(answers[i].confidence.tolist()), 2.0] for i in (0, 1)]
    macs = {
        places: figures_at(answers, [steps[0][places[0]], steps[1][places[1]]]).macs
        for places in itertools.product(range(39), repeat=2)
    }

    def can_be_raised(i, j):
        return any(macs.get(next_one, 9.0) <= 3.7 for next_one in ((i + 1, j), (i, j + 1)))

    spent = [at for at, cost in macs.items() if cost <= 3.7 and not can_be_raised(*at)]
    found = [figures_at(answers, [steps[0][i], steps[1][j]]) for i, j in spent]
    best = max(found, key=lambda c: (c.top1, -c.macs))
    assert choice[1:] == best[1:]
    assert len(set(choice.shares)) == 3


def asked_of(right, sure, macs):
    """Return the answers of networks with two classes that are right about some images."""
    labels = torch.zeros(len(right[0]), dtype=torch.long)
    logits = [F.one_hot(1 - each.long(), 2).float() for each in right]
    return AllAnswers(logits, list(sure), labels, macs)


def test_the_best_of_many_triples_is_not_taken_for_better():
    """Eight networks that know as much as one another: the best triple is so by chance."""
    draw = functools.partial(torch.rand, 8, 300, generator=torch.Generator().manual_seed(0))
    asked = asked_of(draw() < 0.7, draw(), [1, 2, 3, 4, 5, 6, 7, 8])
    alone = [each for each in candidates(asked, fixed=False) if not each.mean]
    triple = max(each.tried.best(9.0).top1 for each in alone if len(each.networks) == 3)
    networks, _, figures = best_choice(alone, 9.0)
    assert len(networks) == 2 and figures.top1 < triple


def test_a_triple_that_is_better_is_taken():
    """Each knows what the ones before it do not, and they know what they know."""
    known = torch.stack([torch.arange(400) < count for count in (200, 300, 400)])
    asked = asked_of(known, known.float(), [1, 3, 8])
    networks, _, figures = best_choice(candidates(asked, fixed=False), 4.5)
    assert networks == (0, 1, 2)
    assert (figures.top1, figures.macs, figures.shares) == (100.0, 4.5, (0.5, 0.25, 0.25))
    few = [each for each in candidates(asked, fixed=False) if len(each.networks) == 2]
    assert best_choice(few, 4.5)[2].top1 == 75.0  # the largest one, after either, is too expensive


def test_a_logit_of_minus_infinity_leaves_entropy_a_number():
    logits = torch.tensor([[1.0, 1.0, -torch.inf], [9.0, 0.0, -torch.inf]])
    sure = CONFIDENCES["entropy"](logits)
    even = 1 - torch.tensor(2.0).log() / torch.tensor(3.0).log()
    torch.testing.assert_close(sure[0], even)
    assert sure[1] > 0.99


@pytest.mark.parametrize("size", [(3, 4, 4), (3, 16, 16)])
def test_images_of_another_size_cost_what_the_table_says(size):
    torch.manual_seed(0)
    loader = [(torch.randn(20, 3, 8, 8), torch.randint(2, (20,)))]
    own = dynamize(NETS["basic"](), 4, split="exact", input_size=(3, 8, 8))
    other = dynamize(NETS["basic"](), 4, split="exact", input_size=size)
    for model, _ in (own, other):
        model.load_state_dict(own.model.state_dict())
    fitted = [Cascade.fit(m.eval(), loader, flops_ratio=0.8).fitted for m, _ in (own, other)]
    assert fitted[0].shares == fitted[1].shares
    assert abs(fitted[0].flops_ratio - fitted[1].flops_ratio) < 0.02


class InDict(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return {"answer": self.network(x)}


def test_what_is_no_logits_cannot_be_fitted_or_averaged():
    said = Says(logits_of(0.9, 0.6, 0.4, 0.2))
    networks, sure = [InDict(said), InDict(said)], lambda answer: answer["answer"].amax(1)
    loader = [(IMAGES, torch.zeros(4).long())]
    with pytest.raises(ArgumentError, match="returns dict, not logits"):
        Cascade.fit(networks, loader, confidence=sure)
    with pytest.raises(ArgumentError, match="returned dict; only logits"):
        Cascade(networks, [0.5], confidence=sure, mean=True)(IMAGES)
