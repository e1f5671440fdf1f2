"""Modules that are known not to write, and to make a tensor of their own."""

import pytest
from torch import fx, nn

from dmnn_convert.graph import Effects
from dmnn_convert.nn import AnyBatchNorm


class Own(nn.Module):
    """A module of the user's, which may do anything."""


@pytest.mark.parametrize(
    ("module", "known"), [(AnyBatchNorm(3), True), (nn.Conv2d(3, 3, 1), True), (Own(), False)]
)
def test_a_librarys_modules_are_known_and_ours_are_too(module, known):
    graph = fx.Graph()
    x = graph.placeholder("x")
    call = graph.call_module("layer", (x,))
    effects = Effects(lambda _: module, frozenset())
    assert effects.known(call) == known
    assert effects.shared(call) == (() if known else (x,))
    assert not Effects(lambda _: module, frozenset({"layer"})).known(call)
