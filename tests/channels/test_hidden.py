"""Hidden channels are followed to where they are made, and every one of them is shared out once."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Written
from torch import nn

from dmnn_convert.channels import Mismatch, NotSplittable, follow, partition
from dmnn_convert.graph import is_size, trace


def followed(written, whole=(), **members):
    """Follow back what `q`, the last layer, reads; return the trace and what was found."""
    traced = trace(Written(written, **members))
    nodes = [n for n in traced.graph.nodes if n.op not in ("placeholder", "output")]
    consumers = [n for n in nodes if n.target == "q"]
    inside = [n for n in nodes if n not in consumers]
    computed = {n for n in inside if n.name in whole}
    return traced, follow(traced, inside, consumers, computed)


def names(nodes):
    return sorted(n.name for n in nodes)


def conv(c_in, c_out, kernel=1, groups=1):
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, groups=groups)


def excite(width, narrow=3):
    return {"down": conv(width, narrow), "up": conv(narrow, width)}


def squeeze(m, h):
    return m.up(m.down(h.mean((2, 3), keepdim=True)).relu()).sigmoid()


def gated(m, x):
    a, b = m.p(x).chunk(2, 1)
    return m.q(a * b.sigmoid())


def spread(m, x):
    h = m.p(x).flatten(2).softmax(1)
    return m.q(h.view(x.shape[0], 12, 8, 8))


# writing, members: producers, entries, reducers, units
TABLE = {
    "plain": (
        lambda m, x: m.q(m.p(x).relu()),
        {"p": conv(5, 12), "q": conv(12, 5)},
        (["p"], [], [], 12),
    ),
    "no_producer": (
        lambda m, x: m.q(m.d(x).relu()),
        {"d": conv(12, 12, 3, 12), "q": conv(12, 5)},
        ([], ["x"], [], 12),
    ),
    "grouped": (
        lambda m, x: m.q(m.d(m.p(x))),
        {"p": conv(5, 12), "d": conv(12, 12, 3, 4), "q": conv(12, 5)},
        (["p"], [], [], 4),
    ),
    "group_norm": (
        lambda m, x: m.q(m.n(m.p(x))),
        {"p": conv(5, 12), "n": nn.GroupNorm(6, 12), "q": conv(12, 5)},
        (["p"], [], [], 6),
    ),
    "two_producers": (
        lambda m, x: m.q(m.a(x) * m.b(x)),
        {"a": conv(5, 12), "b": conv(5, 12), "q": conv(12, 5)},
        (["a", "b"], [], [], 12),
    ),
    "joined": (
        lambda m, x: m.q(torch.cat([m.a(x), m.b(x)], 1)),
        {"a": conv(5, 6), "b": conv(5, 9), "q": conv(15, 5)},
        (["a", "b"], [], [], 3),
    ),
    "pieces": (gated, {"p": conv(5, 24), "q": conv(12, 5)}, (["p"], [], [], 12)),
    "squeeze_excite": (
        lambda m, x: m.q((h := m.p(x)) * squeeze(m, h)),
        {"p": conv(5, 12), "q": conv(12, 5), **excite(12)},
        (["p", "up"], [], ["down"], 12),
    ),
    "mean_of_norms": (
        lambda m, x: m.q(
            (h := m.p(x)) * (n := h.norm(dim=(2, 3), keepdim=True)) / n.mean(1, keepdim=True)
        ),
        {"p": conv(5, 12), "q": conv(12, 5)},
        (["p"], [], ["mean"], 12),
    ),
    "gate_from_outside": (
        lambda m, x: m.q(m.p(x) * m.g(x.mean((2, 3), keepdim=True))),
        {"p": conv(5, 12), "g": conv(5, 12), "q": conv(12, 5)},
        (["g", "p"], [], [], 12),
    ),
    "gate_of_one_channel": (
        lambda m, x: m.q(m.p(x) * m.g(x)),
        {"p": conv(5, 12), "g": conv(5, 1, 3), "q": conv(12, 5)},
        (["p"], [], [], 12),
    ),
    "softmax": (
        lambda m, x: m.q(m.p(x).softmax(1)),
        {"p": conv(5, 12), "q": conv(12, 5)},
        ([], ["softmax"], [], 12),
    ),
    "unknown": (
        lambda m, x: m.q(torch.sort(m.p(x), 1)[0].relu()),
        {"p": conv(5, 12), "q": conv(12, 5)},
        ([], ["getitem"], [], 12),
    ),
    "layer_norm": (
        lambda m, x: m.q(m.n(m.p(x))),
        {"p": nn.Linear(5, 12), "n": nn.LayerNorm(12), "q": nn.Linear(12, 5)},
        ([], ["n"], [], 12),
    ),
    "spatial_gate": (
        lambda m, x: m.q((h := m.p(x)) * m.g(h)),
        {"p": conv(5, 12), "g": conv(12, 1, 3), "q": conv(12, 5)},
        ([], ["p"], [], 12),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_channels_are_followed(name):
    written, members, (producers, entries, reducers, units) = TABLE[name]
    _, hidden = followed(written, **members)
    assert names(hidden.producers) == producers
    assert names(hidden.entries) == entries
    assert names(hidden.reducers) == reducers
    assert hidden.units == units


@pytest.mark.parametrize("name", [name for name in TABLE if name != "unknown"])
def test_every_channel_is_held_once(name):
    written, members, _ = TABLE[name]
    traced, hidden = followed(written, **members)
    check_partition(traced, hidden, 2)


def check_partition(traced, hidden, N):
    shares = partition(traced, hidden, N)
    assert len(shares) == N
    for node, layout in hidden.layouts.items():
        if node.target in ("chunk", "split"):
            continue  # several values, each of which has an entry of its own
        held = torch.cat([own[node] for own in shares])
        assert torch.equal(held.sort().values, torch.arange(layout.count)), node
        assert all(len(own[node]) > 0 for own in shares)
        if node in hidden.entries:
            assert all((own[node].diff() == 1).all() for own in shares), "no slice"
    return shares


def test_what_is_whole_is_not_split():
    members = {"p": conv(5, 12), "q": conv(12, 5)}
    _, hidden = followed(lambda m, x: m.q(m.p(x).relu()), whole=("relu",), **members)
    assert names(hidden.entries) == ["relu"]
    assert not hidden.producers


def test_what_waits_for_the_sums_is_told_apart():
    written, members, _ = TABLE["squeeze_excite"]
    _, hidden = followed(written, **members)
    assert names(hidden.squeezed) == ["relu"]
    assert not hidden.squeezed & hidden.split


def test_a_sum_that_waits_for_a_sum_is_computed_whole():
    def written(m, x):
        h = m.p(x)
        h = h * m.up(m.down(h.mean((2, 3), keepdim=True)))
        return m.q(h * m.up2(m.down2(h.mean((2, 3), keepdim=True))))

    more = {"down2": conv(12, 4), "up2": conv(4, 12)}
    _, hidden = followed(written, p=conv(5, 12), q=conv(12, 5), **excite(12), **more)
    assert len(hidden.reducers) <= 1
    assert hidden.entries


def test_sizes_do_not_stand_in_the_way():
    def written(m, x):
        h = m.p(x)
        b, c, _, _ = h.shape
        return m.q(h * m.fc(h.mean((2, 3))).view(b, c, 1, 1))

    fc = nn.Sequential(nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 12))
    traced, hidden = followed(written, p=conv(5, 12), q=conv(12, 5), fc=fc)
    assert names(hidden.reducers) == ["fc_0"]
    assert not any(is_size(node) for node in hidden.layouts)
    check_partition(traced, hidden, 3)


def test_pieces_that_change_places_do_not_meet():
    def written(m, x):
        a, b = m.p(x).chunk(2, 1)
        return m.q(torch.cat([b, a], 1) * m.g(x))

    traced, hidden = followed(written, p=conv(5, 12), g=conv(5, 12), q=conv(12, 5))
    try:
        check_partition(traced, hidden, 2)
    except Mismatch as mismatch:
        assert "different sub-blocks" in str(mismatch)


def test_a_consumer_of_the_input_alone_reads_slices_of_it():
    _, hidden = followed(lambda m, x: m.q(x), q=conv(12, 5))
    assert names(hidden.entries) == ["x"]
    assert hidden.units == 12


def test_a_consumer_that_is_no_layer_is_refused():
    with pytest.raises(NotSplittable, match="not a plain convolution or linear layer"):
        followed(lambda m, x: m.q(m.p(x)), p=conv(5, 12), q=nn.ReLU())


# --- any widths -------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 6),
    inner=st.integers(1, 3),
    outer=st.integers(1, 3),
    N=st.integers(2, 6),
)
def test_groups_are_never_torn(groups, inner, outer, N):
    before, after = groups * inner, groups * outer
    traced, hidden = followed(
        lambda m, x: m.q(m.d(m.p(x).relu())),
        p=conv(3, before),
        d=conv(before, after, 3, groups),
        q=conv(after, 4),
    )
    assert hidden.units == (groups if groups > 1 else after)
    if hidden.units >= N:
        shares = check_partition(traced, hidden, N)
        for node in hidden.producers:
            sizes = [len(own[node]) for own in shares]
            assert max(sizes) - min(sizes) <= hidden.layouts[node].count // hidden.units


@settings(max_examples=12, deadline=None)
@given(widths=st.lists(st.integers(1, 12), min_size=2, max_size=4), N=st.integers(2, 4))
def test_joined_producers_are_shared_out_side_by_side(widths, N):
    members = {f"p{i}": conv(3, width) for i, width in enumerate(widths)}
    traced, hidden = followed(
        lambda m, x: m.q(torch.cat([getattr(m, name)(x) for name in members], 1)),
        q=conv(sum(widths), 4),
        **members,
    )
    assert hidden.units == math.gcd(*widths)
    if hidden.units >= N:
        check_partition(traced, hidden, N)


@settings(max_examples=12, deadline=None)
@given(width=st.integers(1, 8), pieces=st.integers(2, 4), N=st.integers(2, 4))
def test_pieces_are_shared_out_each_by_itself(width, pieces, N):
    def written(m, x):
        parts = m.p(x).chunk(pieces, 1)
        product = parts[0]
        for i in range(1, pieces):
            product = product * parts[i]
        return m.q(F.relu(product))

    traced, hidden = followed(written, p=conv(3, width * pieces), q=conv(width, 4))
    assert hidden.units == width
    if width >= N:
        check_partition(traced, hidden, N)


@settings(max_examples=12, deadline=None)
@given(units=st.integers(1, 12), narrow=st.integers(1, 5), groups=st.integers(1, 4))
def test_squeeze_excite_of_any_width(units, narrow, groups):
    width = units * groups
    traced, hidden = followed(
        lambda m, x: m.q((h := m.n(m.p(x))) * squeeze(m, h)),
        p=conv(3, width),
        n=nn.GroupNorm(groups, width) if groups > 1 else nn.BatchNorm2d(width),
        q=conv(width, 4),
        **excite(width, narrow),
    )
    assert hidden.units == (groups if groups > 1 else width)
    for N in range(2, min(hidden.units, 4) + 1):
        check_partition(traced, hidden, N)
