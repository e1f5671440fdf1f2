"""Levels and cascades as files: equal answers in every engine, nothing left of what fails."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_nets import images
from torch import nn

from dmnn_convert import (
    ArgumentError,
    Cascade,
    CheckpointError,
    deploy,
    freeze,
    load_deployed,
    prepare,
    record_exits,
)
from dmnn_convert.deployment.checks import engines_for
from dmnn_convert.deployment.folder import move_in
from dmnn_convert.deployment.loaded import LoadedDeployment
from dmnn_convert.deployment.shared_weights import WEIGHTS
from dmnn_convert.errors import ConversionError
from dmnn_convert.runtime.session import has_bf16

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

IMAGES = images(60)
HERE = [e for e in ("onnxruntime", "openvino") if importlib.util.find_spec(e)]


def close(got, expected, tolerance=1e-5):
    torch.testing.assert_close(torch.as_tensor(got), expected, rtol=tolerance, atol=tolerance)


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(256, 5)).eval()


def test_threads_of_a_cascades_networks_stop_spinning_after_a_call(
    folder, changed, tmp_path, monkeypatch
):
    """They would take the processors from the network that runs next: twice the time."""
    import onnxruntime

    spin, opening = [], onnxruntime.InferenceSession

    def noted(file, options, **how):
        spin.append(options.get_session_config_entry("session.force_spinning_stop"))
        return opening(file, options, **how)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    load_deployed(changed(folder, tmp_path), engine="onnxruntime")
    assert spin == ["1", "1", "1"]
    spin.clear()
    load_deployed(folder, engine="onnxruntime")  # one graph, and no other after it
    assert spin == ["0"]
    deploy(linear(), tmp_path / "alone", IMAGES[:1], engine="onnxruntime")
    spin.clear()
    load_deployed(tmp_path / "alone", engine="onnxruntime")
    assert spin == ["0"]


@pytest.mark.parametrize("engine", HERE)
def test_every_level_in_every_engine(engine, folder, changed, cascade, tmp_path):
    run = load_deployed(changed(folder, tmp_path), engine=engine, threads=1)
    assert run.engine == engine
    for batch in (1, 2, 7):
        for own, network in zip(run.networks, cascade.networks, strict=True):
            with torch.no_grad():
                close(own(IMAGES[:batch].numpy()), network(IMAGES[:batch]))
    assert run(IMAGES[:0]).shape == (0, 5)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("confidence", ["margin", "entropy"])
def test_a_cascade_decides_as_in_pytorch(mean, confidence, made, changed, folder, tmp_path):
    told = {"thresholds": made.thresholds.tolist(), "confidence": confidence, "mean": mean}
    run = load_deployed(changed(folder, tmp_path, **told), threads=1)
    with torch.no_grad(), record_exits(made) as exits:
        expected = made(IMAGES)
    answers, levels = run.answered(IMAGES)
    assert levels.tolist() == exits.levels.tolist() and set(levels.tolist()) == {0, 1, 2}
    close(answers, expected)
    alone = torch.cat([run(IMAGES[i : i + 1]) for i in range(len(IMAGES))])
    close(alone, answers)


def test_arrays_come_back_as_arrays(folder, cascade):
    run = load_deployed(folder, threads=1)
    assert isinstance(run(IMAGES.numpy()), np.ndarray) and isinstance(run(IMAGES), torch.Tensor)
    with torch.no_grad():
        close(run(IMAGES.numpy()), cascade(IMAGES))


@pytest.mark.parametrize("engine", HERE)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_is_nan_out(engine, value, folder):
    run, broken = load_deployed(folder, engine=engine, threads=1), IMAGES[:6].clone()
    broken[2, 0, 3, 3] = value
    answers, levels = run.answered(broken)
    assert answers[2].isnan().all() and levels[2] == 0
    sound = [0, 1, 3, 4, 5]
    close(answers[sound], run(IMAGES[:6])[sound])


def test_the_torch_engine(tmp_path):
    network = linear()
    deploy(network, tmp_path, IMAGES[:4], engine="torch")
    run = load_deployed(tmp_path)
    with torch.no_grad():
        close(run(IMAGES), network(IMAGES))
    assert run.engine == "torch" and not (tmp_path / "run_deployed.py").exists()
    with pytest.raises(ArgumentError, match=r"engine='onnxruntime'.*pip install .'torch'."):
        load_deployed(tmp_path, engine="onnxruntime")


def test_bf16_is_openvinos(changed, folder, cascade, tmp_path):
    pytest.importorskip("openvino")
    network = cascade.networks[0]
    with pytest.raises(ArgumentError, match=r"onnxruntime has no bf16.*engine='openvino'"):
        deploy(network, tmp_path, IMAGES[:4], precision="bf16", engine="onnxruntime")
    assert engines_for("auto", "bf16") == ["openvino"]
    changed(folder, tmp_path, precision="bf16")
    if not has_bf16():
        with pytest.raises(ArgumentError, match="no bf16 arithmetic"):
            load_deployed(tmp_path, engine="openvino")
        return
    with torch.no_grad():
        expected = network(IMAGES)
    own = load_deployed(tmp_path, engine="openvino", threads=1).networks[0](IMAGES.numpy())
    off = (torch.as_tensor(own) - expected).abs().max() / expected.abs().max()
    assert 1e-4 < off < 0.1


def test_a_precision_that_the_processor_lacks(tmp_path, monkeypatch):
    openvino = pytest.importorskip("openvino")
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32"])
    with pytest.raises(ArgumentError, match=r"no bf16 arithmetic; deploy with precision='fp32'"):
        deploy(linear(), tmp_path / "out", IMAGES[:2], precision="bf16")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_int8_fits_the_thresholds_again(model, changed, tmp_path):
    with torch.no_grad():
        labels = freeze(model, 1.0)(IMAGES).argmax(1)
    made = Cascade.fit(model, [(IMAGES, labels)], levels=(0.25, 1.0), flops_ratio=0.8)
    batches = [(IMAGES[:30], labels[:30]), (IMAGES[30:], labels[30:])]
    how = {"precision": "int8", "engine": "onnxruntime", "calibration": batches}
    run = load_deployed(deploy(made, tmp_path, IMAGES[:4], **how), threads=1)
    assert run.told["thresholds"] != made.thresholds.tolist()
    parts = load_deployed(changed(tmp_path, tmp_path / "parts"), threads=1).networks
    with torch.no_grad(), record_exits(made) as exits:
        off = torch.as_tensor(parts[1](IMAGES.numpy())) - made.networks[1](IMAGES)
        made(IMAGES)
    assert 1e-4 < off.abs().max() < 0.2
    escalated = run.answered(IMAGES)[1].float().mean()
    assert escalated <= exits.levels.float().mean()  # no dearer on the calibration images
    close(run(IMAGES[:1]), run(IMAGES)[:1])


class Headed(nn.Module):
    """A small body and a large head, which levels share."""

    def __init__(self, body, head):
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


def test_weights_that_levels_share_are_kept_once(tmp_path):
    head = nn.Linear(4 * 64, 300)
    networks = [Headed(nn.Conv2d(3, 4, 1), head).eval() for _ in range(2)]
    made = Cascade(networks, [0.5])
    deploy(made, tmp_path, IMAGES[:2], engine="onnxruntime")
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert sizes[WEIGHTS] == 4 * 300 * 256 + 4 * 300
    assert max(sizes["level0.onnx"], sizes["level1.onnx"]) < 10_000
    with torch.no_grad():
        close(load_deployed(tmp_path)(IMAGES), made(IMAGES))
    deploy(linear(), tmp_path, IMAGES[:2], engine="onnxruntime")  # files of before are gone
    assert not (tmp_path / WEIGHTS).exists() and not (tmp_path / "level1.onnx").exists()


@pytest.mark.slow
def test_gates_answer_as_in_pytorch(model, tmp_path, caplog):
    run = load_deployed(deploy(model, tmp_path, IMAGES[:3], engine="onnxruntime"), threads=1)
    with torch.no_grad():
        close(run(IMAGES[:9]), model(IMAGES[:9]))
    assert run(IMAGES[:0]).shape == (0, 5)
    broken = IMAGES[:3].clone()
    broken[1, 0, 3, 3] = float("nan")
    assert run(broken).isnan().all(1).tolist() == [False, True, False]
    times = run.told["times"]
    assert times["engine"] == "onnxruntime" and times["off_by"] <= 1e-4
    assert ("branches break" in caplog.text) == (times["gated"] >= times["dense"])
    assert f"{times['dense']:.2f} ms" in (tmp_path / "README.md").read_text()


def test_the_description(folder, cascade):
    told = json.loads((folder / "deploy.json").read_text())
    assert told["policy"] == "cascade" and told["input"] == [3, 8, 8] and told["output"] == [5]
    assert told["thresholds"] == cascade.thresholds.tolist()
    networks = {"level0.onnx", "level1.onnx", "level2.onnx"}
    assert set(told["files"]) == {*networks, "cascade.onnx", "weights.bin"}
    assert set(HERE) == set(told["engines"])
    assert told["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "from run_deployed import Deployed" in (folder / "README.md").read_text()


def test_no_path_of_the_user_is_left_inside(folder):
    import onnx

    model = onnx.load(folder / "level0.onnx")
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    text = str(model)
    assert "small_nets" not in text and ".py" not in text


class Fft(nn.Module):
    """An operation that ONNX lacks, two modules down."""

    def forward(self, x):
        return torch.special.bessel_j0(x)


class Asking(nn.Module):
    """A question that a trace would freeze, and that the other exporter answers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(192, 5)

    def forward(self, x):
        if x.shape[2] > 4:
            x = -x
        return self.linear(x.flatten(1))


@pytest.mark.slow
def test_the_other_exporter_takes_over(tmp_path):
    network = Asking().eval()
    deploy(network, tmp_path, IMAGES[:2], engine="onnxruntime")
    with torch.no_grad():
        close(load_deployed(tmp_path, threads=1)(IMAGES), network(IMAGES))


class Branching(nn.Module):
    """A path for bright images, which no trace of one image can follow."""

    def forward(self, x):
        return x.flatten(1) if x.mean() > 0 else -x.flatten(1)


@pytest.mark.slow
def test_a_branch_on_values_is_not_frozen_into_the_file(tmp_path):
    with pytest.raises(ConversionError, match="Branching"):
        deploy(Branching().eval(), tmp_path / "out", IMAGES[:2], engine="onnxruntime")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_operation_that_onnx_lacks_is_named_with_its_module(tmp_path, capfd):
    layer = nn.Sequential(nn.ReLU(), Fft())
    network = nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.Flatten()).eval()
    with pytest.raises(ConversionError, match=r"1\.1 \(Fft\) cannot be exported") as raised:
        deploy(network, tmp_path / "out", IMAGES[:2])
    assert "ONNX has no operator for prims.bessel_j0" in str(raised.value)
    assert "\x1b" not in str(raised.value) and "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "out").exists()


class Best(nn.Module):
    def forward(self, logits):
        return logits.argmax(1)


def test_what_cannot_be_deployed(model, cascade, tmp_path):
    level = linear()
    by_function = Cascade(cascade.networks, [0.5, 0.5], confidence=lambda a: a.amax(1))
    dicts = nn.Module()
    dicts.forward = lambda x: {"out": x}
    cases = [
        (model, {"precision": "int8", "calibration": [IMAGES]}, "branches of an ONNX.*freeze"),
        (model, {"engine": "torch"}, "write_package"),
        (Cascade([model, model], [0.5]), {}, "have gates; make it of plain ones"),
        (linear().train(), {}, "training mode.*eval"),
        (linear().half(), {}, "float16.*precision="),
        (by_function, {}, "function of your own"),
        (dicts.eval(), {}, "returns dict"),
        ("network", {}, "deploy\\(str\\)"),
        (Cascade([level, nn.Flatten()], [0.5]), {}, "logits of the same classes"),
        (level, {"example": IMAGES[:2].double()}, "float64"),
        (level, {"example": IMAGES[:2, :1]}, "does not run on example"),
        (level, {"engine": "tensorrt"}, "choose an engine"),
        (level, {"precision": "int4"}, "choose an engine"),
        (level, {"precision": "int8"}, "int8 needs images"),
        (level, {"precision": "int8", "calibration": []}, "int8 needs images"),
        (level, {"precision": "int8", "calibration": [IMAGES[:, :, :4]]}, "like the example"),
        (level, {"precision": "int8", "calibration": [IMAGES / 0]}, "not all finite"),
        (cascade, {"precision": "int8", "calibration": [IMAGES]}, "with labels"),
        (level, {"precision": "int8", "engine": "torch"}, "torch has no int8"),
        (level, {"precision": "int8", "calibration": 5}, "got int; give a loader"),
        (nn.Sequential(level, Best()).eval(), {}, "int64, which has no NaN.*logits"),
        (prepare(level, IMAGES[:1], engine="torch"), {}, "prepared for this machine"),
        (prepare(model, IMAGES[:1], autotune=False), {}, "prepared for this machine"),
        (level, {"classes": ["a", "b"]}, r"2 names for answers \(5,\)"),
        (level, {"classes": dict(enumerate("abcde"))}, "classes=dict.*list of names"),
        (level, {"preprocessing": {"resize": object()}}, "object in the description"),
    ]
    for network, options, said in cases:
        how = {"example": IMAGES[:2], "engine": "onnxruntime", **options}
        with pytest.raises(ArgumentError, match=said):
            deploy(network, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_an_engine_that_is_not_installed_is_named_with_its_pip_line(folder, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    gone = lambda name, *more: None if name == "onnxruntime" else found(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", gone)
    with pytest.raises(ArgumentError, match=r"pip install .'onnxruntime"):
        load_deployed(folder, engine="onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ArgumentError, match=r'pip install "dmnn-convert\[deploy\]"'):
        deploy(linear(), tmp_path, IMAGES[:2], engine="onnxruntime")


def test_an_engine_that_answers_otherwise_or_fails(tmp_path, monkeypatch):
    real = LoadedDeployment.engines["onnxruntime"]

    def wrong(*given):
        ask = real(*given)
        return lambda images: ask(images) + np.float32(0.01)

    def failing(*_):
        raise RuntimeError("it has no such kernel")

    for engine, said in ((wrong, "fp32 allows 0.0001"), (failing, "no such kernel")):
        monkeypatch.setitem(LoadedDeployment.engines, "onnxruntime", engine)
        with pytest.raises(ConversionError, match=f"onnxruntime does not answer.*{said}"):
            deploy(linear(), tmp_path / "out", IMAGES[:2], engine="onnxruntime")
    assert not (tmp_path / "out").exists()


def test_images_of_another_size_or_dtype(folder):
    run = load_deployed(folder)
    for odd in (IMAGES.double(), IMAGES[:, :, :4], IMAGES[0], IMAGES.numpy().astype("f2"), [1]):
        with pytest.raises(ArgumentError, match="give float32"):
            run(odd)


@pytest.mark.parametrize("what", ["cut", "swapped", "edited", "gone", "json", "version", "escape"])
def test_damaged_or_swapped_files(what, folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    first, second, told = (tmp_path / n for n in ("level0.onnx", "level1.onnx", "deploy.json"))
    text = told.read_text()
    if what == "cut":
        first.write_bytes(first.read_bytes()[:-10])
    elif what == "swapped":
        one, other = first.read_bytes(), second.read_bytes()
        first.write_bytes(other), second.write_bytes(one)
    elif what == "edited":
        told.write_text(text.replace('"mean": false', '"mean": true'))
    elif what == "gone":
        second.unlink()
    elif what == "json":
        told.write_text(text[:50])
    elif what == "version":
        told.write_text(text.replace('"format": 1', '"format": 2'))
    else:
        told.write_text("[]")
    with pytest.raises(CheckpointError, match=r"deploy again|incomplete or damaged"):
        load_deployed(tmp_path)


def mistaken(folder, tmp_path):
    """Calls of a deployed runner by hand: what is wrong, and what it says."""
    np.save(tmp_path / "right.npy", IMAGES[:2].numpy())
    np.save(tmp_path / "wrong.npy", IMAGES[:2].double().numpy())
    yield ["gone.npy", "out.npy"], "gone.npy"
    yield ["wrong.npy", "out.npy"], "got float64"
    yield ["right.npy", "out.npy", "--engine", "tvm"], "engine='tvm'.*pip install"
    yield ["right.npy", "out.npy", "--threads", "-1"], "threads >= 1"


def test_mistakes_at_the_runner_are_told_in_a_line(folder, tmp_path):
    for words, said in mistaken(folder, tmp_path):
        command = [sys.executable, str(folder / "run_deployed.py"), *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert re.search(said, done.stderr)


@pytest.mark.parametrize("name", ["README.md", "deploy.json", "run_deployed.py", "level0.onnx"])
def test_somebody_elses_files_stay(name, folder, cascade, tmp_path):
    theirs = json.dumps({"files": ["thesis.tex"], "format": 1, "sha256": "theirs"})
    (tmp_path / name).write_text(theirs)
    (tmp_path / "thesis.tex").write_text("theirs")
    with pytest.raises(ArgumentError, match=f"holds {name}, which no deployment"):
        move_in(folder, tmp_path)
    if name != "level0.onnx":  # which is known only after the export
        with pytest.raises(ArgumentError, match=f"holds {name}, which no deployment"):
            deploy(cascade, tmp_path, IMAGES[:2])
    assert {f.name for f in tmp_path.iterdir()} == {name, "thesis.tex"}
    assert (tmp_path / name).read_text() == theirs


def test_another_deployment_is_replaced_whole(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "notes.txt").write_text("theirs")
    deploy(linear(), tmp_path, IMAGES[:4], engine="torch")
    kept = {"README.md", "deploy.json", "network.pt2", "notes.txt"}
    assert {file.name for file in tmp_path.iterdir()} == kept


def test_a_file_that_cannot_be_replaced_leaves_all(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run_deployed.py").unlink(), (tmp_path / "run_deployed.py").mkdir()
    with pytest.raises(CheckpointError, match=r"run_deployed\.py is a directory"):
        deploy(linear(), tmp_path, IMAGES[:4], engine="onnxruntime")
    load_deployed(tmp_path)


def test_a_description_of_arrays(tmp_path):
    how = {"mean": np.float32(0.5), "std": torch.tensor([0.5, 0.25]), "sizes": np.arange(2)}
    deploy(linear(), tmp_path, IMAGES[:2], preprocessing=how, classes=np.array([*"abcde"]))
    told = load_deployed(tmp_path).told
    assert told["preprocessing"] == {"mean": 0.5, "std": [0.5, 0.25], "sizes": [0, 1]}
    assert told["classes"] == [*"abcde"]


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(256, 5)

    def forward(self, x):
        return self.head(self.conv(x).view(len(x), -1))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
def test_a_network_may_ask_for_the_number_of_its_images(engine, tmp_path):
    pytest.importorskip(engine)
    torch.manual_seed(0)
    network = Counting().eval()
    deploy(network, tmp_path, IMAGES[:4], engine=engine)
    for some in (IMAGES[:1], IMAGES[:7]):
        close(load_deployed(tmp_path)(some), network(some).detach())
    assert "len" not in globals()


def test_the_torch_engine_leaves_its_images_alone(tmp_path):
    deploy(nn.Flatten().eval(), tmp_path, IMAGES[:2], engine="torch")
    given = IMAGES[:2].numpy().copy()
    given[0, 0, 0, 0] = np.inf
    kept = given.copy()
    answers = load_deployed(tmp_path)(given[..., ::-1])
    assert np.isnan(answers[0]).all() and np.array_equal(given, kept)
    assert np.array_equal(answers[1], given[1, ..., ::-1].ravel())


def test_a_failure_leaves_what_lay_there(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(CheckpointError, match="No space left"):
        move_in(folder, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
