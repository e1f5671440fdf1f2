"""Figures of an evaluation equal hand-computed ones, whatever the batches and processes."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import IMAGE, basic_net, bottleneck_net, images, inverted_net, random_gates
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from two_processes import in_two_processes, needs_gloo

from dmnn_convert import (
    ArgumentError,
    DenseEvaluation,
    DmnnError,
    Evaluation,
    GateMismatchError,
    dynamize,
    evaluate,
    evaluate_dense,
    force_gates,
    gate_parameters,
    record_paths,
    set_execution,
    shard,
)
from dmnn_convert.distributed import gathered
from dmnn_convert.evaluation import Spread
from dmnn_convert.evaluation.information import entropy
from dmnn_convert.evaluation.paths import ones, packed


def lively(net=basic_net, N=2):
    """Gates that differ from image to image."""
    torch.manual_seed(3)
    model, table = dynamize(net(), N, input_size=IMAGE)
    with torch.no_grad():
        for parameter in gate_parameters(model):
            parameter.normal_(0, 3)
    return model.eval(), table


@pytest.fixture(scope="module")
def converted():
    return lively()


def batches(n=30, size=8, classes=5):
    x, y = images(n), torch.arange(n) % classes
    return list(zip(x.split(size), y.split(size), strict=True))


class Given(nn.Module):
    """Returns logits that were given, whatever the images."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", logits)
        self.at = 0

    def forward(self, x):
        self.at += len(x)
        return self.logits[self.at - len(x) : self.at]


def dense(logits, labels, size=2, **options):
    loader = zip(images(len(labels)).split(size), labels.split(size), strict=True)
    return evaluate_dense(Given(logits), loader, **options)


# --- accuracy and loss ------------------------------------------------------------------------


def test_accuracy_and_loss_by_hand():
    logits = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 0, 3], [3, 0, 0], [0, 3, 0]])
    labels = torch.tensor([0, 1, 1, 0, 0])
    found = dense(logits, labels, classes=["cat", "dog", "owl"])
    wrong, right = math.log(math.exp(3) + 2), math.log(math.exp(3) + 2) - 3
    assert found == DenseEvaluation(
        images=5,
        top1=60.0,
        top5=None,
        loss=pytest.approx((2 * wrong + 3 * right) / 5),
        nan_images=0,
        classes=("cat", "dog", "owl"),
        class_images=(3, 2, 0),
        class_top1=(pytest.approx(200 / 3), 50.0, None),
        images_per_second=0,
    )
    assert found.images_per_second > 0


def test_top5_by_hand():
    logits = torch.arange(7.0).expand(7, 7)
    found = dense(logits, torch.arange(7))
    assert (found.top1, found.top5) == (100 / 7, pytest.approx(500 / 7))
    assert found.classes == tuple("0123456")
    assert dense(logits[:, :6], torch.arange(5)).top5 == 80
    assert dense(logits[:, :5], torch.arange(5)).top5 is None


def test_equal_logits_never_are_in_the_first_but_not_in_the_five_first():
    found = dense(torch.zeros(20, 20), torch.zeros(20, dtype=torch.long))
    assert (found.top1, found.top5) == (100, 100)


def test_agrees_with_plain_code_whatever_the_batches(converted):
    model, table = converted
    x, y = images(30), torch.arange(30) % 5
    with torch.no_grad(), record_paths(model) as paths:
        logits = model(x)
    found = [evaluate(model, table, batches(30, size)) for size in (1, 7, 30)]
    for one in found:
        assert one.top1 == pytest.approx(100 * (logits.argmax(1) == y).double().mean().item())
        assert one.loss == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
        assert one.flops_ratio.mean == pytest.approx(paths.flops_ratio().item())
        assert one.network_flops_ratio.mean == pytest.approx(paths.network_flops_ratio().item())
        assert one.execution_rates == pytest.approx(paths.execution_rates().tolist())
        assert one.distinct_paths == len(paths.gates.unique(dim=0)) > 1
        assert without_loss(one) == without_loss(found[0])


def without_loss(found):
    """The loss depends on how a batch is computed, in its last digits."""
    values = found.to_dict()
    return {key: values[key] for key in values if key not in ("loss", "images_per_second")}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_images_without_a_finite_loss_are_counted_and_wrong(bad):
    logits = torch.tensor([[5.0, 0, 0], [5, 0, 0], [5, 0, 0], [5, 0, 0]])
    logits[1, 0] = bad
    found = dense(logits, torch.zeros(4, dtype=torch.long))
    assert (found.nan_images, found.top1) == (1, 75.0)
    assert found.loss == pytest.approx(math.log(math.exp(5) + 2) - 5)
    json.loads(found.to_json(), parse_constant=lambda name: pytest.fail(name))


def test_nothing_but_nans():
    found = dense(torch.full((3, 7), math.nan), torch.zeros(3, dtype=torch.long))
    assert (found.nan_images, found.top1, found.top5, found.loss) == (3, 0.0, 0.0, None)


def test_logits_that_are_masked_out_are_no_nan_images():
    found = dense(torch.tensor([[1.0, -math.inf], [2, -math.inf]]), torch.tensor([0, 0]))
    assert (found.nan_images, found.top1, found.loss) == (0, 100.0, 0.0)


# --- paths ------------------------------------------------------------------------------------


class Rows:
    """Forces given gates, batch after batch."""

    def __init__(self, gates):
        self.rows = gates
        self.at = 0

    def gates(self, position, batch, sizes):
        start = sum(sizes[:position])
        part = self.rows[self.at : self.at + batch, start : start + sizes[position]]
        self.at += batch if position == len(sizes) - 1 else 0
        return part


def forced(converted, gates, labels, size=3, **options):
    """Evaluate with each image's gates as given."""
    model, table = converted
    loader = zip(images(len(gates)).split(size), labels.split(size), strict=True)
    chain = next(m for m in model.modules() if hasattr(m, "chain")).chain
    with chain.forced(Rows(gates)):
        return evaluate(model, table, loader, **options)


A, B = [1.0, 0, 1, 1], [0.0, 0, 1, 0]


def test_two_paths_for_two_classes_by_hand(converted):
    _, table = converted
    gates, labels = torch.tensor([A, B] * 4), torch.tensor([0, 1] * 4)
    found = forced(converted, gates, labels)
    macs = [row.macs for row in table.rows]
    a, b = macs[0] + macs[2] + macs[3], macs[2]
    assert found.gated_macs.mean == (a + b) / 2
    assert found.gated_macs.std == pytest.approx((a - b) / 2)
    assert (found.gated_macs.p1, found.gated_macs.p99) == (b, a)
    assert found.gated_macs.p50 == (a + b) / 2
    assert found.macs.mean == table.fixed + (a + b) / 2
    assert found.flops_ratio.mean == pytest.approx((a + b) / 2 / table.gated)
    assert found.network_flops_ratio.p25 == pytest.approx((table.fixed + b) / table.dense_total)
    assert found.class_flops_ratio == (
        pytest.approx(a / table.gated),
        pytest.approx(b / table.gated),
        *(None,) * 3,
    )
    assert found.sub_block_rates == (0.5, 0, 1, 0.5)
    assert found.execution_rates == (0.25, 0.75)
    assert (found.always_on, found.never_on) == ((("b2", 0),), (("b1", 1),))
    assert (found.distinct_paths, found.path_entropy, found.class_entropy) == (2, 1, 1)
    assert found.mutual_information == 1
    assert 0 < found.chance_information < 0.2
    assert found.frequent_path == tuple(map(int, B))  # as frequent as A, and sorted before it
    assert found.frequent_path_share == 0.5
    assert sum(found.flops_histogram) == 8
    assert found.flops_histogram[int(100 * a / table.gated)] == 4


def test_paths_that_tell_nothing_about_the_class(converted):
    gates, labels = torch.tensor([A, A, B, B]), torch.tensor([0, 1, 0, 1])
    found = forced(converted, gates, labels)
    assert (found.mutual_information, found.path_entropy) == (0, 1)


def test_uneven_shares_by_hand(converted):
    found = forced(converted, torch.tensor([A, A, A, B]), torch.tensor([0, 0, 1, 1]))
    assert found.path_entropy == pytest.approx(2 - 0.75 * math.log2(3))
    assert (found.frequent_path, found.frequent_path_share) == ((1, 0, 1, 1), 0.75)
    assert found.mutual_information == pytest.approx(1 + found.path_entropy - 1.5)


@pytest.mark.parametrize("value", [True, False])
def test_all_gates_alike(converted, value):
    model, table = converted
    with force_gates(model, value):
        found = evaluate(model, table, batches())
    assert found.flops_ratio.mean == float(value)
    assert (found.flops_ratio.std, found.path_entropy, found.mutual_information) == (0, 0, 0)
    assert found.flops_histogram[-1 if value else 0] == found.images == 30
    assert len(found.always_on) == 4 * value
    assert len(found.never_on) == 4 * (not value)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(1, 40), st.integers(1, 16))
def test_figures_hang_together(converted, seed, rate, n, size):
    gates = random_gates(n, 4, rate, seed)
    labels = torch.randint(5, (n,), generator=torch.Generator().manual_seed(seed))
    found = forced(converted, gates, labels, size)
    assert found.path_entropy <= math.log2(found.distinct_paths) + 1e-9
    both = (found.path_entropy, found.class_entropy)
    assert 0 <= found.mutual_information <= min(both) + 1e-9
    assert 0 <= found.chance_information <= min(both) + 1e-9
    assert found.frequent_path_share >= 1 / found.distinct_paths
    by_class = [
        (count, ratio, top1)
        for count, ratio, top1 in zip(
            found.class_images, found.class_flops_ratio, found.class_top1, strict=True
        )
        if ratio is not None
    ]
    assert sum(c * r for c, r, _ in by_class) / n == pytest.approx(found.flops_ratio.mean)
    assert sum(c * t for c, _, t in by_class) / n == pytest.approx(found.top1)
    spread = found.flops_ratio
    ordered = [getattr(spread, f"p{p}") for p in (1, 5, 25, 50, 75, 95, 99)]
    assert ordered == sorted(ordered)
    assert sum(found.flops_histogram) == n
    assert found.sub_block_rates == pytest.approx(gates.double().mean(0).tolist())
    assert Evaluation.from_json(found.to_json()) == found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_a_spread_is_what_torch_finds(values):
    given = torch.tensor(values, dtype=torch.float64)
    found = Spread.of(given)
    assert found.mean == pytest.approx(given.mean().item(), abs=1e-6)
    assert found.std == pytest.approx(given.std(correction=0).item(), abs=1e-6)
    for percent in (1, 5, 25, 50, 75, 95, 99):
        expected = given.quantile(percent / 100).item()
        assert getattr(found, f"p{percent}") == pytest.approx(expected, abs=1e-6)
    assert Spread.of(given.flip(0)) == found


@pytest.mark.parametrize("n", [1, 7, 8, 9, 64, 499])
def test_gates_are_packed_without_loss(n):
    gates = random_gates(5, n, seed=n)
    bits = packed(gates)
    assert (bits.dtype, bits.shape) == (torch.uint8, (5, -(-n // 8)))
    assert torch.equal(ones(bits, n), gates.sum(0).long())
    for row, own in zip(bits, gates, strict=True):
        assert torch.equal(ones(row[None], n).float(), own)


@pytest.mark.parametrize("net", [bottleneck_net, inverted_net])
def test_trunks_and_blocks_without_shortcut(net):
    model, table = dynamize(net(), input_size=IMAGE, split="exact")
    with force_gates(model, False):
        found = evaluate(model, table, batches(6, 4))
    with record_paths(model.eval()) as paths, force_gates(model, False), torch.no_grad():
        model(images(6))
    assert found.gated_macs.mean == table.flops(paths.gates).mean()


# --- frozen gates -----------------------------------------------------------------------------


def test_the_most_frequent_path_can_be_frozen(converted):
    model, table = converted
    found = evaluate(model, table, batches())
    assert found.frozen_path.shape == (4,)
    with force_gates(model, found.frozen_path):
        frozen = evaluate(model, table, batches())  # the last batch is smaller than the others
    assert (frozen.distinct_paths, frozen.frequent_path) == (1, found.frequent_path)
    assert frozen.frequent_path_share == 1
    assert frozen.images == found.images


# --- how it runs ------------------------------------------------------------------------------


class Watched(nn.Module):
    """Notes how a classifier is run."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)
        self.seen = []

    def forward(self, x):
        layout = x.is_contiguous(memory_format=torch.channels_last)
        y = self.linear(x.mean((2, 3)))
        self.seen.append((self.training, torch.is_grad_enabled(), layout, y.dtype))
        return y


def test_runs_in_evaluation_without_gradients_and_puts_modes_back():
    model = Watched().train()
    model.linear.eval()
    evaluate_dense(model, batches(6, 4))
    assert model.seen == [(False, False, False, torch.float32)] * 2
    assert (model.training, model.linear.training, torch.is_grad_enabled()) == (True, False, True)


def test_autocast_and_channels_last():
    model = Watched()
    evaluate_dense(model, batches(6, 4), amp_dtype=torch.bfloat16, channels_last=True, device="cpu")
    assert {entry[2:] for entry in model.seen} == {(True, torch.bfloat16)}


def test_modes_come_back_after_an_error(converted):
    model, table = lively()
    with pytest.raises(KeyError):
        evaluate(model.train(), table, batches(), on_batch={}.__getitem__)
    assert all(module.training for module in model.modules())


def test_gates_are_deterministic_and_the_execution_is_the_models_own():
    model, table = lively()
    first = evaluate(model.train(), table, batches())
    assert evaluate(model, table, batches()) == first
    set_execution(model, "masked")
    assert without_loss(evaluate(model, table, batches())) == without_loss(first)
    assert next(m for m in model.modules() if hasattr(m, "execution")).execution == "masked"


@pytest.mark.parametrize("progress", [True, False])
def test_progress_and_the_call_after_each_batch(converted, progress, capsys, monkeypatch):
    monkeypatch.setattr("dmnn_convert.progress.MINUTE", 0.0)
    model, table = converted
    seen = []
    evaluate(model, table, batches(), progress=progress, on_batch=seen.append)
    assert seen == [8, 16, 24, 30]
    assert ("evaluate" in capsys.readouterr().err) == progress


def test_takes_a_data_loader_and_a_generator(converted):
    model, table = converted
    x, y = images(30), torch.arange(30) % 5
    expected = without_loss(evaluate(model, table, batches()))
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    assert without_loss(evaluate(model, table, loader)) == expected
    more = ((x, y.int(), "whatever else") for x, y in batches())
    assert without_loss(evaluate(model, table, more)) == expected


def test_batches_without_images_change_nothing(converted):
    model, table = converted
    empty = (images(30)[:0], torch.zeros(0, dtype=torch.long))
    expected = without_loss(evaluate(model, table, batches()))
    assert without_loss(evaluate(model, table, [empty, *batches(), empty])) == expected


# --- refusals ---------------------------------------------------------------------------------


def test_models_and_tables_that_do_not_fit(converted):
    model, table = converted
    with pytest.raises(ArgumentError, match="convert it first"):
        evaluate(basic_net(), table, batches())
    other = dynamize(basic_net(), 4, input_size=IMAGE).table
    with pytest.raises(GateMismatchError, match=r"\[2, 2\].*\[4, 4\].*dynamize or load"):
        evaluate(model, other, batches())
    with pytest.raises(ArgumentError, match=r"\(3, 16, 16\).*table\.recomputed"):
        evaluate(model, table, [(images(2, size=(3, 16, 16)), torch.zeros(2, dtype=torch.long))])


X = images(2)


@pytest.mark.parametrize(
    ("loader", "match"),
    [
        ([], "no images"),
        ([(X[:0], torch.zeros(0, dtype=torch.long))], "no images"),
        ([X], "yields Tensor"),
        ([(X,)], "yields tuple"),
        ([(X, [0, 1])], "two tensors"),
        ([{"image": X}], "yields a dict of image"),
        ([(X, torch.tensor([0, 5]))], r"labels from 0 to 5.*5 logits"),
        ([(X, torch.tensor([-1, 0]))], "labels from -1 to 0"),
        ([(X, torch.tensor([0]))], r"labels \(1,\)"),
        ([(X, torch.zeros(2))], "float32"),
        ([(X, torch.zeros(2, 5))], r"labels \(2, 5\)"),
    ],
)
def test_loaders_that_do_not_fit(converted, loader, match):
    model, table = converted
    for call, run in (
        ("evaluate", lambda: evaluate(model, table, loader)),
        ("evaluate_dense", lambda: evaluate_dense(basic_net(), loader)),
    ):
        with pytest.raises(ArgumentError, match=match) as caught:
            run()
        assert str(caught.value).startswith(f"{call}:")


@pytest.mark.parametrize("names", [["a", "b"], [], list("abcdef")])
def test_class_names_that_do_not_fit(converted, names):
    model, table = converted
    with pytest.raises(ArgumentError, match=rf"classes=.*{len(names)} names.*5 logits"):
        evaluate(model, table, batches(), classes=names)


@pytest.mark.parametrize(
    "output", [None, {"out": X}, (X, X), torch.zeros(2, 3, 4), torch.zeros(3, 5)]
)
def test_models_that_return_no_logits(output):
    model = nn.Identity()
    model.forward = lambda x: output
    with pytest.raises(ArgumentError, match=r"logits \(2, classes\)"):
        evaluate_dense(model, [(X, torch.tensor([0, 1]))])


# --- JSON -------------------------------------------------------------------------------------


def test_json_round_trip(converted):
    model, table = converted
    found = evaluate(model, table, batches(), classes=list("abcde"))
    again = Evaluation.from_json(found.to_json())
    assert again == found
    assert again.to_dict() == found.to_dict()
    assert again.images_per_second == found.images_per_second
    values = json.loads(found.to_json())
    assert values["execution_rates"] == list(found.execution_rates)
    assert values["always_on"] == [list(place) for place in found.always_on]
    source = evaluate_dense(basic_net(), batches())
    assert DenseEvaluation.from_json(source.to_json()) == source
    assert DenseEvaluation.from_json(found.to_json()).top1 == found.top1


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"images": 1}', None])
def test_other_json_is_refused(text):
    with pytest.raises(ArgumentError, match=r"Evaluation\.from_"):
        Evaluation.from_json(text)


# --- two processes ----------------------------------------------------------------------------


def everything():
    return TensorDataset(images(31), torch.arange(31) % 5)


CASES = {
    "one_has_a_batch_more": (31, True),
    "one_has_no_images": (1, False),
    "none_has_images": (0, False),
}
"""Number of images, and whether the model is wrapped in DistributedDataParallel."""


def loader_of(count, share):
    chosen = torch.utils.data.Subset(everything(), range(count))
    return DataLoader(share(chosen), batch_size=5)


def on_one_of_two(rank, folder):
    for name, (count, wrapped) in CASES.items():
        model, table = lively()
        model = DistributedDataParallel(model) if wrapped else model
        try:
            text = evaluate(model, table, loader_of(count, shard)).to_json()
        except DmnnError as error:
            text = str(error)
        Path(folder, f"{name}.{rank}").write_text(text, encoding="utf-8")


@needs_gloo
@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    in_two_processes(on_one_of_two, tmp_path)
    model, table = lively()
    for name, (count, _) in CASES.items():
        texts = [(tmp_path / f"{name}.{rank}").read_text(encoding="utf-8") for rank in (0, 1)]
        assert texts[0] == texts[1]
        if not count:
            assert "no images" in texts[0]
            continue
        expected = evaluate(model, table, loader_of(count, lambda whole: whole))
        found = Evaluation.from_json(texts[0])
        assert without_loss(found) == without_loss(expected)
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)


def test_alone_a_process_has_all_of_it():
    assert list(shard(everything()).indices) == list(range(31))
    rows = torch.arange(3)
    assert torch.equal(gathered([rows, rows], rows[:0], torch.device("cpu")), rows.repeat(2))
    assert len(gathered([], rows[:0], torch.device("cpu"))) == 0


def test_data_without_a_length_cannot_be_shared_out():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(ArgumentError, match=r"Endless.*no length"):
        shard(Endless())


def test_the_entropy_of_a_real_evaluation_is_that_of_its_paths(converted):
    model, table = converted
    with record_paths(model) as paths, torch.no_grad():
        model(images(30))
    counts = paths.gates.unique(dim=0, return_counts=True)[1]
    assert evaluate(model, table, batches()).path_entropy == pytest.approx(entropy(counts))
