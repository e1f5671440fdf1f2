"""Converted models under torch.fx, ONNX, torch.func, and with fake and meta tensors."""

import numpy as np
import pytest
import torch
from small_nets import IMAGE, basic_net, images, inverted_net
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dmnn_convert import ArgumentError, dynamize, force_gates
from dmnn_convert.nn import MultiPathBlock, controllers, multi_path_blocks


def varied(net=inverted_net, split="matched"):
    """A converted net whose gates differ between images and are sometimes all off."""
    model = dynamize(net(), input_size=IMAGE, split=split).model.eval()
    for controller in controllers(model):
        nn.init.normal_(controller.w3.weight)
        nn.init.constant_(controller.w3.bias, 0)
    return model


def leaves(graph_module):
    modules = dict(graph_module.named_modules())
    called = [modules[n.target] for n in graph_module.graph.nodes if n.op == "call_module"]
    return [m for m in called if isinstance(m, MultiPathBlock)]


# --- torch.fx -----------------------------------------------------------------------------------


def test_any_tracer_leaves_blocks_whole():
    model, x = varied(basic_net), images(5)
    traced = fx.symbolic_trace(model)
    assert leaves(traced) == multi_path_blocks(model)
    with torch.no_grad():
        assert torch.equal(traced(x), model(x))
        with force_gates(model, False):
            assert torch.equal(traced(x), model(x))


def test_a_block_inside_a_bigger_model_is_a_leaf_too():
    model, x = nn.Sequential(varied(), nn.Softmax(1)), images(3)
    traced = fx.symbolic_trace(model)
    assert len(leaves(traced)) == 2
    with torch.no_grad():
        assert torch.equal(traced(x), model(x))


def test_features_are_extracted():
    from torchvision.models.feature_extraction import create_feature_extractor

    model, x = varied(), images(4)
    extractor = create_feature_extractor(model, {"b1": "first", "fc": "logits"})
    with torch.no_grad():
        found = extractor(x)
        assert torch.equal(found["logits"], model(x))
        assert torch.equal(found["first"], model.b1(model.stem(x)))


@pytest.mark.filterwarnings("ignore")  # torch.ao is on its way out and says so
def test_fx_quantisation_leaves_blocks_whole():
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    model, x = varied(), images(4)
    observed = prepare_fx(model, get_default_qconfig_mapping(), (x,))
    with torch.no_grad():
        observed(x)
        quantised = convert_fx(observed)
        assert len(leaves(quantised)) == 2
        off = (quantised(x) - model(x)).abs().max() / model(x).abs().max()
    assert off < 0.2


def test_scripting_is_told_what_to_do_instead():
    with pytest.raises(ArgumentError, match=r"torch\.jit\.trace.*torch\.export"):
        torch.jit.script(varied())


# --- tensors without values ---------------------------------------------------------------------


def test_vmap_runs_masked():
    model, x = varied(), images(4)
    with torch.no_grad():
        each = torch.func.vmap(lambda image: model(image[None])[0])(x)
        torch.testing.assert_close(each, model(x), atol=1e-5, rtol=1e-4)


def test_gradients_of_each_image():
    model, x = varied(), images(3)
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, image):
        return torch.func.functional_call(model, weights, (image[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    together = torch.func.grad(lambda w: torch.func.functional_call(model, w, (x,)).square().sum())
    wanted = together(weights)
    for name, gradient in each.items():
        torch.testing.assert_close(gradient.sum(0), wanted[name], atol=1e-3, rtol=1e-3)


def test_fake_tensors_run_masked():
    model = varied()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        y = model(mode.from_tensor(images(6)))
    assert y.shape == (6, 5)


def test_the_meta_device_runs_masked():
    model = varied().to("meta")
    with torch.no_grad():
        y = model(images(6).to("meta"))
    assert y.shape == (6, 5)
    assert y.is_meta


def test_what_has_values_still_skips():
    model, ran = varied(basic_net), []
    for block in multi_path_blocks(model):
        for sub_block in block.sub_blocks:
            sub_block.register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad(), force_gates(model, False):
        model(images(3))
    assert not ran


# --- ONNX ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # what the exporters say of themselves
@pytest.mark.parametrize(
    "dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["legacy", "dynamo"]
)
@pytest.mark.parametrize("net", [basic_net, inverted_net])
@pytest.mark.parametrize("split", ["matched", "nested"])
def test_onnx_keeps_the_batch_open(dynamo, net, split, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript" if dynamo else "onnx")
    model, file = varied(net, split), tmp_path / "model.onnx"
    options = {"input_names": ["images"], "output_names": ["logits"]}
    if dynamo:
        batch = torch.export.Dim("batch", min=1, max=64)
        options["dynamic_shapes"] = {"x": {0: batch}}
    else:
        options["dynamic_axes"] = {"images": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(model, (images(4),), file, dynamo=dynamo, **options)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in (1, 4, 7):
        x = images(batch, seed=batch)
        (got,) = session.run(None, {"images": x.numpy()})
        with torch.no_grad():
            wanted = model(x).numpy()
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, and still used
def test_a_traced_model_takes_other_batches():
    model = varied()
    traced = torch.jit.trace(model, images(4))
    for batch in (1, 4, 7):
        x = images(batch, seed=batch)
        with torch.no_grad():
            torch.testing.assert_close(traced(x), model(x), atol=1e-5, rtol=1e-4)
