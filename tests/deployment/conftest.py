"""A cascade that was deployed once for all tests."""

import json
import shutil

import pytest
import torch
from small_nets import NETS, images, seasoned
from torch import nn

from dmnn_convert import Cascade, deploy, dynamize, freeze
from dmnn_convert.budget import confidence_in
from dmnn_convert.deployment.folder import describe


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


@pytest.fixture
def made(cascade, confidence, mean):
    """A cascade that decides as the parameters say; each network is sure of half of the images."""
    x = images(60)
    with torch.no_grad():
        sure = [confidence_in(net(x), confidence, 60).sort().values for net in cascade.networks]
    thresholds = [float(each[29:31].mean()) for each in sure[:2]]
    return Cascade(cascade.networks, thresholds, confidence=confidence, mean=mean)


@pytest.fixture(scope="session")
def changed():
    """Copies a deployment without its one graph, with another description."""

    def change(folder, target, **how):
        shutil.copytree(folder, target, dirs_exist_ok=True)
        told = json.loads((folder / "deploy.json").read_text())
        names, _ = [*told.pop("files")], told.pop("sha256")
        names.remove(told.pop("cascade"))
        describe(target, names, {**told, **how})
        return target

    return change
