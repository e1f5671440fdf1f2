"""Gated networks exported: every gate pattern gives what the model gives."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import off_by
from small_nets import NETS, images, seasoned

from dmnn_convert import ArgumentError, dynamize, force_gates, freeze, record_paths
from dmnn_convert.deployment import GatedTimes, export_gated, write_gated, write_package
from dmnn_convert.deployment.branching import BranchingBlock, branching
from dmnn_convert.deployment.patterns import patterns_off_by, subsets
from dmnn_convert.errors import ConversionError
from dmnn_convert.nn import controllers
from dmnn_convert.runtime import write_onnx, write_program

PATTERNS = list(itertools.product([0.0, 1.0], repeat=4))


def give_gates_a_mind(model):
    """Let gates differ from image to image."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for controller in controllers(model):
            controller.w3.weight.normal_(0, 3, generator=generator)
            controller.w3.bias.normal_(generator=generator)
    return model


ALWAYS = 100.0
"""A margin that no image changes."""


def converted(kind, N=2, split="exact"):
    model = dynamize(seasoned(NETS[kind]()), N, split=split, input_size=(3, 8, 8)).model.eval()
    with torch.no_grad():
        for controller in controllers(model):  # exporters keep equal tensors once
            controller.w3.bias.add_(torch.arange(2 * N) * (1 + controller.position) / 8)
    return model


def expected(model, pattern, x):
    with torch.no_grad(), force_gates(model, torch.tensor([pattern])):
        return model(x)


def margins(pattern):
    """Biases of both blocks' margins that decide alone."""
    return [(2 * torch.tensor(half) - 1) * ALWAYS for half in (pattern[:2], pattern[2:])]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["merged", "apart"])
@pytest.mark.parametrize("kind", NETS)
def test_every_pattern_before_it_is_exported(kind, form):
    model, x = converted(kind), images(1)
    network = branching(model, form)
    blocks = [m for m in network.modules() if isinstance(m, BranchingBlock)]
    apart = sum(block.apart for block in blocks)
    assert apart == (0 if form == "merged" else {"basic": 2, "bottleneck": 0, "inverted": 1}[kind])
    for pattern in PATTERNS:
        for block, margin in zip(blocks, margins(pattern), strict=True):
            block.gates.b3.copy_(margin)
        with torch.no_grad():
            assert off_by(network(x), expected(model, pattern, x)) <= 1e-5


def test_its_own_gates_are_the_models():
    model = give_gates_a_mind(converted("inverted"))
    network = branching(model)
    with torch.no_grad(), record_paths(model) as paths:
        for i in range(20):
            assert off_by(network(images(1, seed=i)), model(images(1, seed=i))) <= 1e-5
    assert len(paths.gates.unique(dim=0)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("form", ["merged", "apart"])
@pytest.mark.parametrize("kind", NETS)
def test_every_pattern_of_an_exported_program(kind, form):
    model, x = converted(kind), images(1)
    program = export_gated(model, x, form).module()
    biases = [b for name, b in program.named_buffers() if name.endswith("gates.b3")]
    for pattern in PATTERNS:
        for bias, margin in zip(biases, margins(pattern), strict=True):
            bias.copy_(margin)
        with torch.no_grad():
            assert off_by(program(x), expected(model, pattern, x)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("form", ["merged", "apart"])
@pytest.mark.parametrize("kind", NETS)
def test_every_pattern_of_an_onnx_file(kind, form, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    model, x, file = converted(kind), images(1), tmp_path / "gated.onnx"
    write_program(export_gated(model, x, form), file)
    proto = onnx.load(file)
    assert "If" in {node.op_type for node in proto.graph.node}
    biases = [t for t in proto.graph.initializer if t.name.endswith("gates.b3")]
    for pattern in PATTERNS:
        for bias, margin in zip(biases, margins(pattern), strict=True):
            bias.CopyFrom(onnx.numpy_helper.from_array(margin.numpy(), bias.name))
        session = runtime.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (got,) = session.run(None, {"images": x.numpy()})
        np.testing.assert_allclose(got, expected(model, pattern, x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_fastest_form_is_written_with_its_times(tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    model, file = give_gates_a_mind(converted("basic")), tmp_path / "gated.onnx"
    some = [images(1, seed=i) for i in range(3)]
    times = write_gated(model, some, file, engine="onnxruntime", threads=1)
    assert times.form in ("merged", "apart")
    assert times.gated > 0 < times.dense and times.off_by <= 1e-4
    assert ".py" not in file.read_bytes().decode("latin1")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    x = images(1, seed=7)
    with torch.no_grad():
        assert off_by(torch.tensor(session.run(None, {"images": x.numpy()})[0]), model(x)) <= 1e-4


@pytest.mark.slow
def test_a_wrong_branch_is_found(tmp_path, monkeypatch):
    """A sub-block that no gate of the images turns off is left out of one branch."""
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    model, x, file = converted("basic"), images(1), tmp_path / "gated.onnx"
    write_program(export_gated(model, x), file)
    assert patterns_off_by(model, x, file, "onnxruntime") <= 1e-5
    proto = onnx.load(file)
    outer = next(node for node in proto.graph.node if node.op_type == "If")
    then, other = (attribute.g for attribute in outer.attribute)
    swapped = {"then_branch": other, "else_branch": then}
    copies = {name: onnx.helper.make_attribute(name, graph) for name, graph in swapped.items()}
    del outer.attribute[:]
    outer.attribute.extend(copies.values())
    onnx.save(proto, file)
    assert patterns_off_by(model, x, file, "onnxruntime") > 1e-2
    with pytest.raises(ConversionError, match="0 decisions for 2 controllers"):
        write_onnx(freeze(model, 1.0), x, file)
        patterns_off_by(model, x, file, "onnxruntime")


def test_all_subsets_of_few_sub_blocks_and_a_sample_of_many():
    assert list(subsets(2)) == [(), (0,), (1,), (0, 1)]
    assert len(set(subsets(4))) == 16
    assert len(list(subsets(8))) == 1 + 8 + 8 + 1


def test_nested_sub_blocks_do_not_run_apart():
    model, x = converted("basic", split="nested"), images(1)
    network = branching(model, "apart")
    blocks = [m for m in network.modules() if isinstance(m, BranchingBlock)]
    assert not any(block.apart for block in blocks)
    for pattern in PATTERNS:
        for block, margin in zip(blocks, margins(pattern), strict=True):
            block.gates.b3.copy_(margin)
        with torch.no_grad():
            assert off_by(network(x), expected(model, pattern, x)) <= 1e-5


def test_advice_only_where_gates_save_nothing():
    assert GatedTimes("onnxruntime", "merged", 2.0, 3.0, 0.0).advice is None
    said = GatedTimes("onnxruntime", "merged", 4.0, 3.0, 0.0).advice
    assert "4.00 ms" in said and "3.00 ms" in said and "Cascade" in said


def test_what_cannot_be_exported():
    model = converted("basic")
    with pytest.raises(ArgumentError, match=r"one image; give \(1, C, H, W\)"):
        export_gated(model, images(2))
    with pytest.raises(ArgumentError, match=r"dense=.*training mode"):
        write_gated(model, [images(1)], Path("net.onnx"), dense=NETS["basic"]())
    with pytest.raises(ArgumentError, match="in training mode"):
        export_gated(converted("basic").train(), images(1))
    with pytest.raises(ArgumentError, match="choose merged or apart"):
        branching(model, "beside")
    with pytest.raises(ArgumentError, match="convert it first"):
        branching(freeze(model, 0.5))
    with pytest.raises(ArgumentError, match="has 8 sub-blocks, and 4 are the most"):
        branching(converted("basic", N=8))
    with pytest.raises(ArgumentError, match=r"ends in \.pt2"):
        write_package(model, images(1), Path("net.onnx"))
    with pytest.raises(ArgumentError, match="folder that exists"):
        write_package(model, images(1), "nowhere/net.pt2")
    with pytest.raises(ArgumentError, match="training mode"):
        write_package(converted("basic").train(), images(1), "net.pt2")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.filterwarnings("ignore")  # what the compiler's libraries say of themselves
@pytest.mark.parametrize("form", ["frozen", "masked", "gated"])
def test_packages_give_what_the_network_gives(form, tmp_path):
    from torch._inductor import aoti_load_package

    model = give_gates_a_mind(converted("basic"))
    network = freeze(model, 0.5) if form == "frozen" else model
    file = write_package(network, images(1), tmp_path / "net.pt2", gated=form == "gated")
    package = aoti_load_package(str(file))
    for i in range(8):
        with torch.no_grad():
            x = images(1, seed=i)
            assert off_by(package(x), network(x)) <= 1e-4
