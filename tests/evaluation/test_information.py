"""Entropy and mutual information, and how much of the latter chance gives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from dmnn_convert.evaluation.information import chance_information, entropy, mutual_information

LABELLINGS = st.integers(1, 40).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 7), min_size=n, max_size=n)] * 2)
)


@pytest.mark.parametrize(
    ("counts", "bits"),
    [([5], 0), ([2, 2], 1), ([1] * 8, 3), ([2, 1, 1], 1.5), ([3, 0, 3], 1), ([0, 7], 0)],
)
def test_entropy_by_hand(counts, bits):
    assert entropy(torch.tensor(counts)) == pytest.approx(bits)


@pytest.mark.parametrize(
    ("a", "b", "bits"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], 1),
        ([0, 0, 1, 1], [1, 1, 0, 0], 1),
        ([0, 0, 1, 1], [0, 1, 0, 1], 0),
        ([0, 0, 0, 0], [0, 1, 0, 1], 0),
        ([0, 1, 2, 3], [0, 0, 5, 5], 1),
    ],
)
def test_mutual_information_by_hand(a, b, bits):
    assert mutual_information(torch.tensor(a), torch.tensor(b)) == pytest.approx(bits)


@settings(max_examples=60, deadline=None)
@given(LABELLINGS)
def test_agrees_with_scikit_learn(labels):
    a, b = (torch.tensor(part) for part in labels)
    got = mutual_information(a, b)
    assert got == pytest.approx(mutual_info_score(*labels) / math.log(2), abs=1e-9)
    assert 0 <= got <= min(entropy(a.bincount()), entropy(b.bincount())) + 1e-9
    table = contingency_matrix(*labels, sparse=True)
    by_chance = expected_mutual_information(table, len(a)) / math.log(2)
    assert chance_information(a, b) == pytest.approx(by_chance, abs=1e-9)


def test_where_every_path_is_one_images_own_all_of_it_is_chance():
    labels, own = torch.arange(100) % 10, torch.arange(100)
    assert mutual_information(own, labels) == pytest.approx(math.log2(10))
    assert chance_information(own, labels) == pytest.approx(math.log2(10))


def test_chance_is_the_mean_over_shuffles():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(30, (200,), generator=generator)
    b = torch.randint(4, (200,), generator=generator)
    shuffles = (b[torch.randperm(200, generator=generator)] for _ in range(200))
    mean = sum(mutual_information(a, shuffled) for shuffled in shuffles) / 200
    assert chance_information(a, b) == pytest.approx(mean, rel=0.02)


def test_many_images_are_no_trouble():
    labels = torch.arange(50_000) % 1000
    paths = torch.arange(50_000).clamp_min(40_000)
    assert 0 < chance_information(paths, labels) < math.log2(1000)
    assert chance_information(labels, labels) < mutual_information(labels, labels)
