"""Prepared networks cannot be exported, and say what can."""

import pytest
import torch
from small_nets import NETS, images, seasoned

from dmnn_convert import ArgumentError, Cascade, dynamize, freeze, prepare

WAYS = {
    "script": lambda net, x: torch.jit.script(net),
    "trace": lambda net, x: torch.jit.trace(net, x),
    "export": lambda net, x: torch.export.export(net, (x,)),
    "onnx": lambda net, x: torch.onnx.export(net, (x,), "none.onnx", dynamo=False),
}


def prepared(kind):
    model = dynamize(seasoned(NETS["basic"]()), 2, split="exact", input_size=(3, 8, 8)).model.eval()
    level, whole = freeze(model, 0.5), freeze(model, 1.0)
    source = {"gated": model, "level": level, "cascade": Cascade([level, whole], [0.1])}[kind]
    return prepare(source, images(1), engine="torch", threads=1)


@pytest.mark.filterwarnings("ignore")  # what the exporters say of themselves
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["gated", "level", "cascade"])
def test_the_error_names_the_way(kind, way, tmp_path, monkeypatch):
    monkeypatch.setenv("DMNN_CONVERT_CACHE", str(tmp_path / "autotune.json"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=r"export the model .*freeze\(model, 0.5\)"):
        WAYS[way](prepared(kind), images(1))
    assert not list(tmp_path.glob("*.onnx"))
