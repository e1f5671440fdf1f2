"""Layers whose tensors are computed in each forward stay dense; the rest is converted."""

import copy
import warnings

import pytest
import torch
from quick import slow_unless
from small_nets import IMAGE, Inverted, basic_net, images, inverted_net, seasoned
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, remove_weight_norm

from dmnn_convert import ConversionError, NoBlocksFoundError, dynamize, find_blocks, force_gates

REMOVE = r"torch\.nn\.utils\.parametrize\.remove_parametrizations\(module, 'weight'\)"


def old(name):
    def apply(module):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return getattr(nn.utils, name)(module)

    return apply


class Positive(nn.Module):
    def forward(self, weight):
        return weight.abs()


def own(module):
    parametrize.register_parametrization(module, "weight", Positive())


PARAMETRISATIONS = {
    "WeightNorm": parametrizations.weight_norm,
    "SpectralNorm": parametrizations.spectral_norm,
    "Orthogonal": parametrizations.orthogonal,
    "Positive": own,
}


@pytest.mark.parametrize("name", PARAMETRISATIONS)
@pytest.mark.parametrize("place", slow_unless(bool, [0, 3]))
def test_a_parametrised_layer_keeps_its_block_dense(name, place):
    model = basic_net().eval()
    PARAMETRISATIONS[name](model.b1.branch[place])
    dense, free = find_blocks(model)
    assert f"b1.branch.{place}.weight is parametrised ({name})" in dense.reason
    assert "remove_parametrizations(module, 'weight')" in dense.reason
    assert free.reason is None
    keys = list(model.state_dict())
    converted, table = dynamize(model, input_size=IMAGE)
    assert table.blocks == ("b2",)
    assert list(model.state_dict()) == keys
    x = images(2)
    with torch.no_grad(), force_gates(converted, True):
        assert torch.allclose(converted(x), model(x), atol=1e-5)


def test_the_remedy_is_one():
    model = seasoned(basic_net())
    parametrizations.weight_norm(model.b1.branch[0])
    x = images(2)
    expected = model(x)
    parametrize.remove_parametrizations(model.b1.branch[0], "weight")
    converted, table = dynamize(model, input_size=IMAGE)
    assert table.blocks == ("b1", "b2")
    with torch.no_grad(), force_gates(converted, True):
        assert torch.allclose(converted(x), expected, atol=1e-5)


def test_a_norm_may_be_parametrised_too():
    model = basic_net()
    own(model.b2.branch[4])
    assert "b2.branch.4.weight is parametrised (Positive)" in find_blocks(model)[1].reason


def test_a_parametrised_shortcut_does_no_harm():
    model = seasoned(basic_net())
    parametrizations.weight_norm(model.b2.down[0])
    converted, table = dynamize(model, input_size=IMAGE)
    assert table.blocks == ("b1", "b2")
    x = images(2)
    with torch.no_grad(), force_gates(converted, True):
        assert torch.allclose(converted(x), model(x), atol=1e-5)


def test_when_all_are_parametrised_each_is_listed():
    model = basic_net()
    for block in (model.b1, model.b2):
        parametrizations.weight_norm(block.branch[0])
    with pytest.raises(NoBlocksFoundError, match=rf"(?s)b1 .*{REMOVE}.*b2 .*{REMOVE}"):
        dynamize(model, input_size=IMAGE)


@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_parametrised_chain_is_a_near_miss(place):
    model = inverted_net()
    assert isinstance(model.b2, Inverted)
    parametrizations.weight_norm(model.b2[place])
    first, second = find_blocks(model)
    assert first.reason is None
    assert second.name == "b2"
    assert f"b2.{place}.weight is parametrised" in second.reason


# --- old-style: hooks, and tensors that PyTorch cannot copy -----------------------------------


ATTACHED = {
    "weight_norm": (old("weight_norm"), r"remove_weight_norm\(module\)"),
    "pruning": (
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
        r"prune\.remove\(module, 'weight'",
    ),
}


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("where", ["b1.branch.0", "b2.down.0", "fc"])
@pytest.mark.parametrize("name", ATTACHED)
def test_what_pytorch_cannot_copy_comes_with_the_remedy(name, where, inplace):
    apply, remedy = ATTACHED[name]
    model = basic_net()
    apply(model.get_submodule(where))
    with pytest.raises(ConversionError, match=rf"^dynamize: .*{where}.weight .*{name}.*{remedy}"):
        dynamize(model, input_size=IMAGE, inplace=inplace)
    with pytest.raises(ConversionError, match=rf"^find_blocks: .*{remedy}"):
        find_blocks(model)


def test_the_remedy_for_old_weight_norm_is_one():
    model = basic_net()
    layer = old("weight_norm")(model.b1.branch[0])
    remove_weight_norm(layer)
    assert dynamize(model, input_size=IMAGE).table.blocks == ("b1", "b2")


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
def test_old_style_norms_that_can_be_copied_keep_the_block_dense(name):
    model = basic_net().eval()
    old(name)(model.b1.branch[0])
    with torch.no_grad():
        model(images(2))
    dense, free = find_blocks(model)
    assert f"b1.branch.0.weight is made by {name}" in dense.reason
    assert f"torch.nn.utils.remove_{name}(module)" in dense.reason
    assert free.reason is None
    assert dynamize(model, input_size=IMAGE).table.blocks == ("b2",)


def test_a_remembered_output_is_to_be_detached():
    model = basic_net()
    model.b1.last = model.b1.branch[0].weight * 2
    with pytest.raises(ConversionError, match=r"b1\.last .*module\.last = module\.last\.detach"):
        dynamize(model, input_size=IMAGE)


class Forgetful(nn.Module):
    """Can be copied, because it leaves out what it remembers."""

    def __init__(self):
        super().__init__()
        self.net = basic_net()
        self.last = None

    def forward(self, x):
        return self.net(x)

    def __deepcopy__(self, memo):
        new = Forgetful()
        new.net = copy.deepcopy(self.net, memo)
        return new


def test_a_model_that_knows_how_to_be_copied_is_believed():
    model = Forgetful()
    model.last = model(images(2))
    assert dynamize(model, input_size=IMAGE).table.blocks == ("net.b1", "net.b2")


class Uncopyable(nn.Module):
    def __deepcopy__(self, memo):
        raise TypeError("a lock cannot be copied")

    def forward(self, x):
        return x


def test_in_place_is_no_remedy_where_it_fails_as_well():
    model = nn.Sequential(basic_net(), Uncopyable())
    for inplace in (True, False):
        with pytest.raises(ConversionError, match="a lock cannot be copied") as caught:
            dynamize(model, input_size=IMAGE, inplace=inplace)
        assert "inplace" not in str(caught.value)


# --- fixed weights ----------------------------------------------------------------------------


def as_buffer(module):
    for name in ("weight", "bias"):
        tensor = getattr(module, name, None)
        if tensor is not None:
            delattr(module, name)
            with torch.no_grad():
                module.register_buffer(name, tensor * 0.5)


def as_plain(module):
    weight = module.weight.detach().clone()
    del module.weight
    module.weight = weight


@pytest.mark.parametrize("place", [0, 1, 3, 4])
def test_weights_that_are_buffers_are_cut_and_stay_buffers(place):
    model = seasoned(basic_net())
    as_buffer(model.b1.branch[place])
    converted, table = dynamize(model, input_size=IMAGE)
    assert table.blocks == ("b1", "b2")
    x = images(3)
    with torch.no_grad(), force_gates(converted, True):
        assert torch.allclose(converted(x), model(x), atol=1e-5)
    parameters = dict(converted.named_parameters())
    cut = [k for k in converted.state_dict() if k.endswith(f"branch.{place}.weight") and "b1." in k]
    assert len(cut) == 2
    assert not set(cut) & set(parameters)
    assert all(isinstance(p, nn.Parameter) for p in parameters.values())
    copied = copy.deepcopy(converted)
    assert list(copied.state_dict()) == list(converted.state_dict())


def test_a_plain_tensor_keeps_the_block_dense():
    model = seasoned(basic_net())
    as_plain(model.b1.branch[0])
    dense, free = find_blocks(model)
    assert "b1.branch.0.weight is neither parameter nor buffer" in dense.reason
    assert free.reason is None
    converted, table = dynamize(model, input_size=IMAGE)
    assert table.blocks == ("b2",)
    x = images(3)
    with torch.no_grad(), force_gates(converted, True):
        assert torch.allclose(converted(x), model(x), atol=1e-5)


def test_frozen_weights_stay_frozen_in_every_sub_block():
    model = basic_net()
    for parameter in model.b1.branch.parameters():
        parameter.requires_grad_(False)
    converted = dynamize(model, input_size=IMAGE).model
    own = [(n, p) for n, p in converted.b1.named_parameters() if "sub_blocks" in n]
    assert own
    assert not any(p.requires_grad for _, p in own)
    assert all(p.requires_grad for n, p in converted.b1.named_parameters() if "controller" in n)
