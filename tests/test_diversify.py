"""Gates that start out different from image to image."""

import copy

import pytest
import torch
from small_nets import IMAGE, basic_net, bottleneck_net, images, inverted_net, seasoned

from dmnn_convert import ArgumentError, GateConfig, diversify, dynamize, force_gates, record_paths


def converted(net=basic_net, **options):
    return dynamize(seasoned(net()), 2, input_size=IMAGE, **options).model.eval()


def margins(model, x):
    with record_paths(model) as paths, force_gates(model, True), torch.no_grad():
        model(x)
    logits = torch.cat(paths.gate_logits, 1)
    return logits[..., 1] - logits[..., 0]


@pytest.mark.parametrize("net", [basic_net, bottleneck_net, inverted_net])
@pytest.mark.parametrize("chained", [True, False])
def test_margins_have_the_given_mean_and_deviation(net, chained):
    model, x = converted(net, gate=GateConfig(chained=chained)), images(64)
    assert margins(model, x).std(0).max() < 1e-6  # a new controller decides alike for all
    diversify(model, [x[:32], (x[32:], None)], spread=1.5, rate=0.8)
    found = margins(model, x)
    torch.testing.assert_close(found.std(0), torch.full_like(found[0], 1.5), rtol=1e-3, atol=0)
    torch.testing.assert_close(
        found.mean(0), torch.full_like(found[0], 4.0).log(), rtol=0, atol=1e-3
    )


def test_gates_of_a_block_tell_images_apart_in_different_ways():
    model, x = converted(), images(256)
    diversify(model, [x], spread=2.0, rate=0.5)
    related = torch.corrcoef(margins(model, x)[:, :2].T)[0, 1]
    assert related.abs() < 0.9
    with record_paths(model) as paths, torch.no_grad():
        model(x)
    assert len(paths.gates.unique(dim=0)) > 3


def test_nothing_but_the_last_layers_changes():
    model = converted().train()
    before = copy.deepcopy(model.state_dict())
    diversify(model, [images(8)])
    after = model.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {key for key in after if ".w3." in key}
    assert model.training


def test_the_same_seed_gives_the_same_gates():
    models = [converted() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        model.load_state_dict(models[0].state_dict())
        diversify(model, [images(16)], seed=seed)
    first, second, third = (margins(model, images(16)) for model in models)
    assert torch.equal(first, second)
    assert not torch.allclose(first, third)


@pytest.mark.parametrize("spread", [0.0, -1.0, float("nan")])
def test_the_spread_is_positive(spread):
    with pytest.raises(ArgumentError, match="spread > 0"):
        diversify(converted(), [images(4)], spread=spread)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_rate_is_inside(rate):
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        diversify(converted(), [images(4)], rate=rate)


def test_an_empty_loader_is_an_error():
    with pytest.raises(ArgumentError, match="no batch"):
        diversify(converted(), [])
