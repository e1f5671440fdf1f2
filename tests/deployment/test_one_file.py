"""A cascade as one ONNX file: the runner's answers and levels, in every engine."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from small_nets import images
from torch import nn

from dmnn_convert import ArgumentError, Cascade, ConversionError, deploy, freeze, record_exits
from dmnn_convert.deployment import one_file
from dmnn_convert.deployment.one_file import ONE_FILE, write_one_file

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
    """Writes one file of a deployment whose description says otherwise."""

    def write(folder, target, **how):
        told = json.loads((changed(folder, target, **how) / "deploy.json").read_text())
        write_one_file(target, told, IMAGES[:7].numpy())
        return target / ONE_FILE

    return write


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("confidence", ["margin", "entropy"])
def test_one_file_decides_as_in_pytorch(mean, confidence, made, written, folder, tmp_path):
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
    (answers, _), (sound, _) = run(broken), run(IMAGES[:6])
    assert np.isnan(answers).all(1).tolist() == [False, False, True, False, False, False]
    others = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(answers[others], sound[others], rtol=1e-5, atol=1e-5)


def test_deploy_writes_it_beside_the_others(cascade, tmp_path):
    deploy(cascade, tmp_path, IMAGES[:4], engine="onnxruntime", one_file=True)
    told = json.loads((tmp_path / "deploy.json").read_text())
    assert ONE_FILE in told["files"] and ONE_FILE not in told["networks"]
    assert f"{ONE_FILE} is the whole cascade" in (tmp_path / "README.md").read_text()
    answers, _ = in_onnxruntime(tmp_path / ONE_FILE)(IMAGES)
    with torch.no_grad():
        np.testing.assert_allclose(answers, cascade(IMAGES), rtol=1e-5, atol=1e-5)
    deploy(cascade, tmp_path, IMAGES[:4], engine="onnxruntime")  # files of before are gone
    assert not (tmp_path / ONE_FILE).exists()


def test_weights_that_levels_share_are_in_it(tmp_path):
    head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 300))
    made = Cascade([head.eval(), nn.Sequential(head).eval()], [0.02])
    deploy(made, tmp_path / "shared", IMAGES[:2], engine="onnxruntime", one_file=True)
    assert (tmp_path / "shared" / "weights.bin").exists()
    file = shutil.move(tmp_path / "shared" / ONE_FILE, tmp_path)  # alone
    with torch.no_grad():
        np.testing.assert_allclose(in_onnxruntime(file)(IMAGES)[0], made(IMAGES), atol=1e-5)


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
def test_int8(model, tmp_path):
    with torch.no_grad():
        labels = freeze(model, 1.0)(IMAGES).argmax(1)
    made = Cascade.fit(model, [(IMAGES, labels)], levels=(0.25, 1.0), flops_ratio=0.8)
    how = {"precision": "int8", "engine": "onnxruntime", "calibration": [(IMAGES, labels)]}
    deploy(made, tmp_path, IMAGES[:4], one_file=True, **how)
    from dmnn_convert import load_deployed

    answers, levels = load_deployed(tmp_path).answered(IMAGES.numpy())
    got, asked = in_onnxruntime(tmp_path / ONE_FILE)(IMAGES)
    assert np.array_equal(levels, asked) and set(levels) == {0, 1}
    np.testing.assert_allclose(got, answers, rtol=1e-5, atol=1e-5)


def test_a_file_that_answers_otherwise_is_not_kept(cascade, tmp_path, monkeypatch):
    def reversed_order(graph, probabilities, told):
        return graph.add("Neg", confidence(graph, probabilities, told))

    confidence = one_file._confidence
    monkeypatch.setattr(one_file, "_confidence", reversed_order)
    with pytest.raises(ConversionError, match="the single file's answers"):
        deploy(cascade, tmp_path / "out", IMAGES[:7], engine="onnxruntime", one_file=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", [{}, {"engine": "torch"}])
def test_only_cascades_in_onnx(how, cascade, tmp_path):
    given = cascade if how else cascade.networks[0]
    with pytest.raises(ArgumentError, match=r"one_file=True\): is for cascades in ONNX"):
        deploy(given, tmp_path / "out", IMAGES[:2], one_file=True, **how)
    assert not (tmp_path / "out").exists()
