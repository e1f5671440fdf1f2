"""Layers that were pruned, parametrised or replaced after the conversion."""

import copy

import pytest
import torch
from small_nets import IMAGE, bottleneck_net, images, seasoned
from torch import nn
from torch.nn.utils import parametrizations, prune

from dmnn_convert import (
    ArgumentError,
    ConversionError,
    dynamize,
    force_gates,
    freeze,
    level_path,
)


def _pruned(parent, name):
    prune.l1_unstructured(getattr(parent, name), "weight", 0.5)


def _normed(parent, name):
    parametrizations.weight_norm(getattr(parent, name))


def _replaced(parent, name):
    setattr(parent, name, nn.Sequential(getattr(parent, name)))


def changed(split, change):
    model = dynamize(seasoned(bottleneck_net()), 4, split=split, input_size=IMAGE).model.eval()
    part = model.b1.multi_path
    body = part.body if split == "nested" else part.sub_blocks[0]
    change(body.branch, "3")
    return model


@pytest.mark.parametrize("split", ["exact", "matched"])
@pytest.mark.parametrize("change", [_pruned, _normed, _replaced])
@pytest.mark.parametrize("level", [0.5, 1.0])
@torch.no_grad()
def test_they_are_frozen_as_they_are(split, change, level):
    model, x = changed(split, change), images(3)
    with force_gates(model, level_path(model, level)):
        expected = model(x)
    torch.testing.assert_close(freeze(model, level)(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [(_pruned, "permanent first"), (_normed, "permanent first"), (_replaced, "a Sequential was")],
)
@torch.no_grad()
def test_a_nested_block_cannot_take_a_part_of_them(change, said):
    model, x = changed("nested", change), images(3)
    with force_gates(model, True):
        whole = model(x)
    torch.testing.assert_close(freeze(model, 1.0)(x), whole, atol=1e-5, rtol=1e-5)
    with pytest.raises(ArgumentError, match=f"branch.3: .*{said}"):
        freeze(model, 0.5)
    with pytest.raises(ArgumentError, match=said), force_gates(model, level_path(model, 0.5)):
        model(x)


def test_pruning_that_is_made_permanent_stays_in_every_level():
    model, x = changed("nested", _pruned), images(3)
    layer = model.b1.multi_path.body.get_submodule("branch.3")
    mask = copy.deepcopy(layer.weight_mask)
    model(x).sum().backward()
    with pytest.raises(ConversionError, match=r"freeze: .*prune\.remove"):
        freeze(model, 0.5)
    prune.remove(layer, "weight")
    with torch.no_grad(), force_gates(model, level_path(model, 0.5)):
        frozen = freeze(model, 0.5)
        torch.testing.assert_close(frozen(x), model(x), atol=1e-5, rtol=1e-5)
    kept = frozen.get_submodule("b1.branch.3").weight
    assert torch.equal(kept == 0, mask[: len(kept), : kept.shape[1]] == 0)
