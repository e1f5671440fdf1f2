"""A cascade as one ONNX graph: its networks' answers and levels, in every engine."""

import importlib.util
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from small_nets import images
from torch import nn

from dmnn_convert import Cascade, deploy, freeze, load_deployed, record_exits
from dmnn_convert.deployment import one_graph
from dmnn_convert.deployment.one_graph import CASCADE, add_one_graph

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

IMAGES = images(60)


def in_onnxruntime(file):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"images": x.numpy()})


def in_openvino(file):
    from dmnn_convert.runtime.session import open_session

    run = open_session("openvino", str(file), 1)
    return lambda x: run(x.numpy())


ENGINES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}
HERE = [name for name in ENGINES if importlib.util.find_spec(name)]


@pytest.fixture
def written(changed):
    """Writes the graph of a deployment whose description says otherwise."""

    def write(folder, target, **how):
        told = json.loads((changed(folder, target, **how) / "deploy.json").read_text())
        assert CASCADE in add_one_graph(target, list(told["files"]), IMAGES[:7].numpy())
        return target / CASCADE

    return write


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("confidence", ["margin", "entropy"])
def test_it_decides_as_in_pytorch(mean, confidence, made, written, folder, tmp_path):
    told = {"thresholds": made.thresholds.tolist(), "confidence": confidence, "mean": mean}
    file = written(folder, tmp_path, **told)
    with torch.no_grad(), record_exits(made) as exits:
        expected = made(IMAGES)
    assert {*exits.levels.tolist()} == {0, 1, 2}
    for engine in HERE:
        run = ENGINES[engine](file)
        for batch in (1, 7, 60):
            answers, levels = run(IMAGES[:batch])
            assert levels.tolist() == exits.levels[:batch].tolist()
            np.testing.assert_allclose(answers, expected[:batch], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", HERE)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_is_nan_out(engine, value, written, folder, tmp_path):
    run = ENGINES[engine](written(folder, tmp_path))
    broken = IMAGES[:6].clone()
    broken[2, 0, 3, 3] = value
    (answers, levels), (sound, _) = run(broken), run(IMAGES[:6])
    assert levels[2] == 0
    assert np.isnan(answers).all(1).tolist() == [False, False, True, False, False, False]
    others = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(answers[others], sound[others], rtol=1e-5, atol=1e-5)


def test_the_runner_takes_it(cascade, folder):
    told = json.loads((folder / "deploy.json").read_text())
    assert told["cascade"] == CASCADE and {CASCADE, "weights.bin"} <= {*told["files"]}
    assert f"{CASCADE} and weights.bin are the whole cascade" in (folder / "README.md").read_text()
    run = load_deployed(folder, engine="onnxruntime", threads=1)
    assert run.at_once and len(run.networks) == 1
    with torch.no_grad(), record_exits(cascade) as exits:
        expected = cascade(IMAGES)
    answers, levels = run.answered(IMAGES)
    torch.testing.assert_close(answers, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(levels, exits.levels) and run(IMAGES[:0]).shape == (0, 5)


def test_each_weight_is_kept_once(cascade, folder):
    kept = sum(
        (folder / name).stat().st_size
        for name in json.loads((folder / "deploy.json").read_text())["files"]
    )
    parameters = sum(p.numel() for net in cascade.networks for p in net.parameters())
    assert (folder / "weights.bin").stat().st_size < 4 * parameters < kept


def test_weights_of_branches_are_shared_with_the_networks(tmp_path):
    head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 300))
    made = Cascade([head.eval(), nn.Sequential(head).eval()], [0.02])
    deploy(made, tmp_path, IMAGES[:2], engine="onnxruntime")
    assert (tmp_path / "weights.bin").stat().st_size == 4 * (3 * 64 + 1) * 300
    with torch.no_grad():
        expected = made(IMAGES)
    np.testing.assert_allclose(in_onnxruntime(tmp_path / CASCADE)(IMAGES)[0], expected, atol=1e-5)
    alone = tmp_path / "alone" / CASCADE  # as docs/deploy.md has it
    alone.parent.mkdir()
    onnx.save(onnx.load(tmp_path / CASCADE), alone)
    np.testing.assert_allclose(in_onnxruntime(alone)(IMAGES)[0], expected, atol=1e-5)


def test_rows_of_numbers_for_images(tmp_path):
    torch.manual_seed(0)
    made = Cascade([nn.Linear(6, 5).eval() for _ in range(2)], [0.3])
    rows = torch.randn(20, 6)
    run = load_deployed(deploy(made, tmp_path, rows, engine="onnxruntime"), threads=1)
    with torch.no_grad():
        torch.testing.assert_close(run(rows), made(rows), rtol=1e-5, atol=1e-5)
    assert run.at_once
    assert "cascade.onnx is the whole cascade" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_networks_of_different_opsets(written, folder, cascade, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    file = other / "level1.onnx"
    model = onnx.load(file)
    before = next(own.version for own in model.opset_import if not own.domain)
    onnx.save(onnx.version_converter.convert_version(model, before + 1), file)
    answers, _ = in_onnxruntime(written(other, tmp_path / "out"))(IMAGES)
    with torch.no_grad():
        np.testing.assert_allclose(answers, cascade(IMAGES), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_int8(model, changed, tmp_path):
    with torch.no_grad():
        labels = freeze(model, 1.0)(IMAGES).argmax(1)
    made = Cascade.fit(model, [(IMAGES, labels)], levels=(0.25, 1.0), flops_ratio=0.8)
    how = {"precision": "int8", "engine": "onnxruntime", "calibration": [(IMAGES, labels)]}
    deploy(made, tmp_path, IMAGES[:4], **how)
    run = load_deployed(tmp_path, engine="onnxruntime")
    told = json.loads((tmp_path / "deploy.json").read_text())
    assert run.at_once and told["thresholds"] != made.thresholds.tolist()  # fitted again
    answers, levels = run.answered(IMAGES.numpy())
    assert set(levels) == {0, 1}
    by_parts = load_deployed(changed(tmp_path, tmp_path / "parts"), engine="onnxruntime")
    expected, asked = by_parts.answered(IMAGES.numpy())
    assert np.array_equal(levels, asked)
    np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-5)


def test_a_graph_that_answers_otherwise_is_not_kept(cascade, tmp_path, monkeypatch, caplog):
    def reversed_order(graph, probabilities, told):
        return graph.add("Neg", confidence(graph, probabilities, told))

    confidence = one_graph._confidence
    monkeypatch.setattr(one_graph, "_confidence", reversed_order)
    with caplog.at_level(logging.WARNING):
        deploy(cascade, tmp_path, IMAGES[:7], engine="onnxruntime")
    assert f"leaves {CASCADE} out (its answers are off by" in caplog.text
    told = json.loads((tmp_path / "deploy.json").read_text())
    assert "cascade" not in told and CASCADE not in {file.name for file in tmp_path.iterdir()}
    run = load_deployed(tmp_path)
    assert not run.at_once
    with torch.no_grad():
        torch.testing.assert_close(run(IMAGES), cascade(IMAGES), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"engine": "torch"}])
def test_networks_and_programs_have_none(how, cascade, tmp_path):
    deploy(cascade if how else cascade.networks[0], tmp_path, IMAGES[:2], **how)
    assert not (tmp_path / CASCADE).exists()
    assert "cascade" not in json.loads((tmp_path / "deploy.json").read_text())
