"""Times of policies that share networks."""

import pytest
import torch
from small_nets import NETS, images, seasoned

from dmnn_convert import Cascade, dynamize, freeze
from dmnn_convert.runtime import ImageClock
from dmnn_convert.runtime import clock as clock_module


@pytest.mark.slow
def test_a_network_that_several_policies_use_is_prepared_once(monkeypatch):
    prepared, real = [], clock_module.static_network
    monkeypatch.setattr(
        clock_module,
        "static_network",
        lambda net, *words: prepared.append(net) or real(net, *words),
    )
    model = dynamize(seasoned(NETS["basic"]()), 2, split="exact", input_size=(3, 8, 8)).model.eval()
    half, whole = freeze(model, 0.5), freeze(model, 1.0)
    clock = ImageClock([images(4), images(4, seed=1)])
    both = [Cascade([half, whole], [threshold]) for threshold in (0.1, 0.2)]
    assert all(clock.milliseconds(network) > 0 for network in (half, whole, *both))
    assert prepared == [half, whole]
    with torch.no_grad():
        torch.testing.assert_close(clock._fastest(both[0])(images(4)), both[0](images(4)))
