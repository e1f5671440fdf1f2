"""Prepared networks cannot be exported, and say what can."""

import pytest
import torch
from quick import one_in
from small_nets import NETS, images, seasoned
from torch._dynamo.exc import Unsupported

from dmnn_convert import ArgumentError, Cascade, dynamize, freeze, prepare

WAYS = {
    "script": lambda net, x: torch.jit.script(net),
    "trace": lambda net, x: torch.jit.trace(net, x),
    "export": lambda net, x: torch.export.export(net, (x,)),
    "onnx": lambda net, x: torch.onnx.export(net, (x,), "none.onnx", dynamo=False),
}


@pytest.fixture(scope="module", params=["gated", "level", "cascade"])
def prepared(request, tmp_path_factory):
    model = dynamize(seasoned(NETS["basic"]()), 2, split="exact", input_size=(3, 8, 8)).model.eval()
    level, whole = freeze(model, 0.5), freeze(model, 1.0)
    source = {"gated": model, "level": level, "cascade": Cascade([level, whole], [0.1])}[
        request.param
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(
            "DMNN_CONVERT_CACHE", str(tmp_path_factory.mktemp("cache") / "autotune.json")
        )
        return prepare(source, images(1), engine="torch", threads=1)


@pytest.mark.filterwarnings("ignore")  # what the exporters say of themselves
@pytest.mark.parametrize("way", one_in(2, WAYS))
def test_the_error_names_the_way(prepared, way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # torch.export of PyTorch 2.6 raises an error of its own around it.
    with pytest.raises(
        (ArgumentError, Unsupported), match=r"export the model .*freeze\(model, 0.5\)"
    ):
        WAYS[way](prepared, images(1))
    assert not list(tmp_path.glob("*.onnx"))
