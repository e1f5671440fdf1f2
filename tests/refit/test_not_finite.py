"""Values that are not finite become nobody's statistics or weights."""

import pytest
import torch
from small_nets import IMAGE, bottleneck_net, images, seasoned

from dmnn_convert import (
    ArgumentError,
    calibrate,
    dynamize,
    estimate_levels,
    reconstruct,
    reestimate_norms,
)


def _reconstructed(model, loader):
    reconstruct(model, seasoned(bottleneck_net()), loader)


def _at_levels(model, loader):
    estimate_levels(model, loader, [0.5])


@pytest.mark.parametrize("call", [calibrate, reestimate_norms, _reconstructed, _at_levels])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_the_model_stays_as_it_is(call, value):
    model = dynamize(seasoned(bottleneck_net()), 2, split="matched", input_size=IMAGE).model
    before = {name: kept.clone() for name, kept in model.state_dict().items()}
    odd = images(4)
    odd[1, 0, 2, 3] = value
    with pytest.raises(ArgumentError, match="not finite"):
        call(model, [images(4), odd])
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(kept, after[name]) for name, kept in before.items())
