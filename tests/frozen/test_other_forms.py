"""Frozen networks in users' hands: exported, compiled, quantised; each gives the same."""

import warnings

import numpy as np
import pytest
import torch
from nets import off_by
from small_nets import NETS, images, seasoned
from torch import nn

from dmnn_convert import dynamize, force_gates, freeze, record_paths
from dmnn_convert.nn import controllers

pytestmark = pytest.mark.filterwarnings("ignore")  # what these tools say of themselves
CLOSE, QUANTISED = 1e-5, 0.1
"""Deviations that float32, and eight bits, explain."""


@pytest.fixture(scope="module", params=list(NETS))
def frozen(request):
    model = dynamize(seasoned(NETS[request.param]()), 2, split="exact", input_size=(3, 8, 8)).model
    return freeze(model.eval(), 0.5).requires_grad_(False)


def test_torch_export_keeps_the_batch_open(frozen):
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(frozen, (images(4),), dynamic_shapes=({0: batch},)).module()
    for count in (1, 4, 7):
        assert off_by(program(images(count)), frozen(images(count))) <= CLOSE


def test_a_trace_keeps_the_batch_open(frozen):
    traced = torch.jit.trace(frozen, images(4))
    for count in (1, 4, 7):
        assert off_by(traced(images(count)), frozen(images(count))) <= CLOSE


@pytest.mark.parametrize(
    "dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["legacy", "dynamo"]
)
def test_onnx_keeps_the_batch_open(frozen, dynamo, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    pytest.importorskip("onnxscript" if dynamo else "onnx", reason="needs onnx and onnxscript")
    options = {"input_names": ["images"], "dynamo": dynamo}
    if dynamo:
        options["dynamic_shapes"] = ({0: torch.export.Dim("batch", min=1, max=64)},)
    else:
        options["dynamic_axes"] = {"images": {0: "batch"}}
    file = tmp_path / "frozen.onnx"
    torch.onnx.export(frozen, (images(4),), file, **options)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for count in (1, 4, 7):
        (got,) = session.run(None, {"images": images(count).numpy()})
        np.testing.assert_allclose(got, frozen(images(count)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_compiles(frozen):
    torch._dynamo.reset()
    compiled = torch.compile(frozen, fullgraph=True)
    with torch.no_grad():
        assert off_by(compiled(images(3)), frozen(images(3))) <= CLOSE


def test_dynamic_quantisation(frozen):
    quantised = torch.ao.quantization.quantize_dynamic(frozen, {nn.Linear}, dtype=torch.qint8)
    kinds = {type(m).__module__ for m in quantised.modules()}
    assert any("quantized.dynamic" in kind for kind in kinds)
    assert 0 < off_by(quantised(images(8)), frozen(images(8))) <= QUANTISED


@pytest.mark.parametrize("kind", NETS)
def test_dynamic_quantisation_of_a_whole_converted_network(kind):
    """Controllers are quantised as well; gates can be forced and paths recorded as before."""
    model = dynamize(seasoned(NETS[kind]()), 2, split="exact", input_size=(3, 8, 8)).model.eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    layers = [controllers(quantised)[0].w3, quantised.fc]
    assert all("quantized.dynamic" in type(layer).__module__ for layer in layers)
    x = images(8)
    for rate in (True, 0.5):
        with torch.no_grad(), force_gates(model, rate, seed=1):
            expected = model(x)
        with torch.no_grad(), force_gates(quantised, rate, seed=1):
            assert 0 < off_by(quantised(x), expected) <= QUANTISED
    with torch.no_grad(), record_paths(quantised) as paths:
        quantised(x)
    assert paths.gates.shape == (8, 4)


def test_static_quantisation_of_a_graph(frozen):
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(frozen, get_default_qconfig_mapping("fbgemm"), (images(8),))
    for seed in range(4):
        prepared(images(8, seed=seed))
    quantised = convert_fx(prepared)
    assert any("quantized" in type(m).__module__ for m in quantised.modules())
    assert 0 < off_by(quantised(images(8)), frozen(images(8))) <= 2 * QUANTISED


def test_static_quantisation_of_a_module():
    """Eagerly, a user wraps what is to be quantised: here the stem of a frozen network."""
    from torch.ao import quantization

    model = dynamize(seasoned(NETS["basic"]()), 2, split="exact", input_size=(3, 8, 8)).model
    net = freeze(model.eval(), 0.5)
    before = net(images(8))
    net.stem = quantization.QuantWrapper(net.stem)
    net.stem.qconfig = quantization.get_default_qconfig("fbgemm")
    quantization.prepare(net, inplace=True)
    net(images(8))
    quantization.convert(net, inplace=True)
    assert "quantized" in type(net.stem.module).__module__
    assert 0 < off_by(net(images(8)), before) <= QUANTISED


def test_weight_only_quantisation(frozen):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except Exception as error:  # whatever a release for another PyTorch raises
        pytest.skip(f"needs torchao: {error}")
    import copy

    quantised = copy.deepcopy(frozen)
    quantize_(quantised, Int8WeightOnlyConfig())
    assert type(quantised.fc.weight) is not nn.Parameter
    assert 0 < off_by(quantised(images(8)), frozen(images(8))) <= QUANTISED
