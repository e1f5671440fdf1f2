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


class Standardised(nn.Conv2d):
    """Weight standardisation."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.flatten(1).std(), self.bias)


class Adapted(nn.Conv2d):
    """A low-rank update beside the weight."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.down = nn.Parameter(torch.randn(2, self.in_channels, *self.kernel_size))
        self.up = nn.Parameter(torch.randn(self.out_channels, 2))

    def forward(self, x):
        change = torch.einsum("or,rihw->oihw", self.up, self.down)
        return self._conv_forward(x, self.weight + change, self.bias)


class Scaled(nn.Conv2d):
    """A factor in a buffer."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("gain", torch.tensor(0.7))

    def forward(self, x):
        return super().forward(x) * self.gain


def _of_class(cls):
    def make(conv):
        size = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding
        new = cls(*size, bias=conv.bias is not None)
        new.load_state_dict(conv.state_dict(), strict=False)
        return new

    return make


def _doubling(conv):
    conv.register_forward_hook(lambda layer, inputs, output: 2 * output)
    return conv


@pytest.mark.parametrize(
    "make",
    [*map(_of_class, (Standardised, Adapted, Scaled)), nn.utils.spectral_norm, _doubling],
)
@pytest.mark.parametrize("split", ["exact", "matched"])
def test_layers_that_do_more_stay_apart_in_every_sub_block(split, make):
    model, x = (
        dynamize(seasoned(bottleneck_net()), 4, split=split, input_size=IMAGE).model,
        images(3),
    )
    for sub_block in model.b1.multi_path.sub_blocks:
        for name in ("0", "3", "6"):
            layer = getattr(sub_block.branch, name, None)
            if isinstance(layer, nn.Conv2d):
                setattr(sub_block.branch, name, make(layer))
    with torch.no_grad():
        model(x)
        model.eval()
        for level in (0.5, 1.0):
            with force_gates(model, level_path(model, level)):
                expected = model(x)
            torch.testing.assert_close(freeze(model, level)(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("put", [lambda c: _of_class(Adapted)(c), lambda c: nn.GroupNorm(1, 8)])
def test_what_a_nested_block_cannot_cut_is_told(put):
    model = dynamize(seasoned(bottleneck_net()), 4, split="nested", input_size=IMAGE).model.eval()
    body = model.b1.multi_path.body.branch
    name = "4" if isinstance(put(body.get_submodule("3")), nn.GroupNorm) else "3"
    setattr(body, name, put(body.get_submodule(name)))
    with pytest.raises(ArgumentError, match="Replace layers before dynamize"):
        freeze(model, 0.5)


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
