"""A prepared cascade answers as the cascade does, by static networks in their fastest form."""

import functools
import itertools

import pytest
import torch
from quick import slow_unless
from small_nets import NETS, images, seasoned
from torch import nn

from dmnn_convert import ArgumentError, Cascade, dynamize, freeze, record_exits
from dmnn_convert import prepare as prepare_in_any
from dmnn_convert.runtime import static_network
from dmnn_convert.runtime.packed import PackedConv
from dmnn_convert.runtime.prepared_cascade import PreparedCascade
from dmnn_convert.runtime.static_network import StaticNetwork

prepare = functools.partial(prepare_in_any, engine="torch")  # others: test_engines.py


def cascade_of(kind="basic", **options):
    model = dynamize(seasoned(NETS[kind]()), 4, split="exact", input_size=(3, 8, 8)).model.eval()
    networks = [freeze(model, level) for level in (0.25, 0.5, 1.0)]
    with torch.no_grad():
        p = networks[0](images(40)).softmax(-1).topk(2).values
    middle = float((p[:, 0] - p[:, 1]).sort().values[19:21].mean())  # no image's own
    return Cascade(networks, [middle, middle], **options)


@pytest.mark.parametrize(
    ("kind", "mean"),
    slow_unless(
        lambda kind, mean: mean and kind == "inverted", itertools.product(NETS, (False, True))
    ),
)
def test_the_same_answers_by_the_same_levels(kind, mean):
    cascade = cascade_of(kind, mean=mean)
    prepared = prepare(cascade, images(1))
    assert any(isinstance(m, PackedConv) for m in prepared.networks[0].modules())
    for batch in (1, 7, 40):
        x = images(batch)
        with record_exits(cascade) as before, torch.no_grad():
            expected = cascade(x)
        with record_exits(prepared) as after:
            got = prepared(x)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(before.levels, after.levels)
        assert not got.requires_grad
    assert len(before.levels.unique()) > 1
    assert not any(isinstance(m, StaticNetwork) for m in cascade.modules())


def test_nan_stays_nan():
    prepared = prepare(cascade_of(), images(1))
    x = images(3)
    x[1, 0, 0, 0] = torch.nan
    assert prepared(x).isnan().any(1).tolist() == [False, True, False]


def test_networks_that_cannot_be_followed_run_as_they_are(caplog):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1) * (1 if x.sum() else 2)

    cascade = Cascade([Odd().eval(), Odd().eval()], [0.5])
    prepared = prepare(cascade, images(1))
    torch.testing.assert_close(prepared(images(4)), cascade(images(4)))
    assert "runs as it is" in caplog.text


def test_the_larger_networks_get_batches_of_the_sizes_that_have_graphs(monkeypatch):
    sizes = {"cheap": set(), "larger": set()}

    def run(graphs, key, call, images):  # what a GPU replays, in its place
        sizes["cheap" if graphs is cheap.graphs else "larger"].add(key[0])
        return call(images)

    monkeypatch.setattr(static_network.Graphs, "run", run)
    cascade = cascade_of()
    graphed = static_network.graph_sizes([24])
    fast = [static_network.static_network(network, images(1)) for network in cascade.networks]
    fast = [StaticNetwork(n.network, n.layout, images(1), graphed) for n in fast]
    cheap, prepared = fast[0], PreparedCascade(cascade, fast, None, images(1))
    for batch in (24, 23, 17, 40):
        x = images(batch)
        with record_exits(cascade) as before, torch.no_grad():
            expected = cascade(x)
        with record_exits(prepared) as after:
            torch.testing.assert_close(prepared(x), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(before.levels, after.levels)
    assert sizes["cheap"] == {24}  # whole batches run at their own size
    assert sizes["larger"] and sizes["larger"] <= set(graphed)


def test_graph_sizes():
    assert static_network.graph_sizes([1]) == [1]
    assert static_network.graph_sizes([20, 7]) == [1, 2, 3, 4, 6, 7, 8, 12, 16, 20]


def test_a_padded_batch_keeps_its_answers_alone():
    seen = []
    padded = static_network.Padded(lambda x: seen.append(len(x)) or x.flatten(1), (2, 4))
    for count, size in ((1, 2), (2, 2), (3, 4), (5, 5)):
        x = images(count)
        assert torch.equal(padded(x), x.flatten(1))
        assert seen.pop() == size


@pytest.mark.slow
def test_bad_input():
    cascade = cascade_of()
    prepared = prepare(cascade, images(1))
    with pytest.raises(ArgumentError, match="give images"):
        prepared([images(1)[0]])
    with pytest.raises(ArgumentError, match=r"is for torch\.float32 on cpu"):
        prepared(images(1).double())
    with pytest.raises(ArgumentError, match="cannot be trained"):
        prepared.train()
    with pytest.raises(ArgumentError, match="stays on its device"):
        prepared.half()
    with pytest.raises(ArgumentError, match="in training mode"):
        prepare(cascade.train(), images(1))
    with pytest.raises(ArgumentError, match="does not run on example_input"):
        prepare(cascade.eval(), torch.randn(1, 5, 8, 8))
