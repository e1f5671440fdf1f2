"""A cascade that was deployed once for all tests."""

import pytest
import torch
from small_nets import NETS, images, seasoned
from torch import nn

from dmnn_convert import Cascade, deploy, dynamize, freeze


def converted():
    model = dynamize(seasoned(NETS["basic"]()), 4, split="exact", input_size=(3, 8, 8)).model
    for parameter in model.parameters():  # answers that differ from image to image
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    return converted()


@pytest.fixture(scope="session")
def cascade(model):
    """Three networks, each of which answers some of `small_nets.images(60)`."""
    networks = [freeze(model, level) for level in (0.25, 0.5, 1.0)]
    return Cascade(networks, [0.13, 0.1])


@pytest.fixture(scope="session")
def folder(cascade, tmp_path_factory):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return deploy(cascade, tmp_path_factory.mktemp("deployed") / "cascade", images(4))
