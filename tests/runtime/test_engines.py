"""Engines beside PyTorch: timed alone, never trusted unseen, refused with a reason."""

import pytest
import torch
from small_nets import NETS, images, seasoned
from torch import nn

from dmnn_convert import ArgumentError, Cascade, dynamize, freeze, prepare, record_exits
from dmnn_convert.runtime import Benchmark, Engine, is_installed, write_onnx
from dmnn_convert.runtime import alone as alone_module
from dmnn_convert.runtime import engine as engine_module
from dmnn_convert.runtime import prepared_cascade as choosing
from dmnn_convert.runtime.alone import each_alone, engines_for
from dmnn_convert.runtime.engine import EngineNetwork
from dmnn_convert.runtime.session import open_session

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
ORT = Engine("onnxruntime")


def test_engines_are_those_that_run_such_images():
    x = images(1)
    assert ORT in engines_for(x)
    assert all(e.precision == "bf16" for e in engines_for(x.bfloat16()))
    assert engines_for(x.double()) == [] == engines_for(x.to("meta"))


def test_each_engine_times_each_batch_in_a_process_of_its_own():
    net = seasoned(NETS["basic"]())
    engines = engines_for(images(3))
    with each_alone(net, [images(3), images(3, seed=1)], 1, engines) as found:
        assert list(found) == engines
        processes = [alone.process for alone in found.values()]
        assert len({process.pid for process in processes}) == len(engines)
        assert all(0 < alone.seconds(which) < 5 for alone in found.values() for which in (0, 1))
    assert all(process.poll() is not None for process in processes)


class LastDecides(nn.Module):
    """A trace of it keeps the branch that its own images took."""

    def forward(self, x):
        return x.mean((2, 3)) * (1 if x[-1, 0, 0, 0] > 0 else 2)


@pytest.mark.slow
def test_what_an_export_freezes_is_not_timed(caplog):
    x = images(2)
    x[:, 0, 0, 0] = torch.tensor([1.0, -1.0])  # the export sees the first image alone
    with each_alone(LastDecides().eval(), [x], 1, [ORT]) as found:
        assert found == {}
    assert "LastDecides does not export to ONNX" in caplog.text


def test_what_answers_otherwise_is_not_timed(monkeypatch, caplog):
    def write_another(network, image, file):
        write_onnx(nn.Conv2d(3, 4, 3).eval(), image, file)

    monkeypatch.setattr(alone_module, "write_onnx", write_another)
    with each_alone(nn.Conv2d(3, 4, 3).eval(), [images(2)], 1, [ORT]) as found:
        assert found == {}
    assert "gives other results than Conv2d" in caplog.text


@pytest.mark.slow
def test_what_does_not_export_is_told(caplog):
    class Sparse(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)).to_sparse().to_dense()

    with each_alone(Sparse().eval(), [images(1)], 1, [ORT]) as found:
        assert found == {}
    assert "Sparse does not export to ONNX" in caplog.text


def test_the_benchmark_divides_by_the_fastest_of_all(tmp_path, monkeypatch):
    monkeypatch.setenv("DMNN_CONVERT_CACHE", str(tmp_path / "autotune.json"))
    source = seasoned(NETS["basic"]())
    model, table = dynamize(source, 2, split="exact", input_size=(3, 8, 8))
    bench = Benchmark(source, model.eval(), table, [images(2)], 1, engines=[ORT])
    timings = bench.run((0.5,), rounds=2)
    dense = {t.form: t for t in timings if not t.rate}
    assert "dense, onnxruntime" in dense
    fastest = min(t.milliseconds for t in dense.values())
    for t in timings:
        assert t.time_ratio == pytest.approx(t.milliseconds / fastest)


# --- prepare ------------------------------------------------------------------------------------


ENGINES = [
    "onnxruntime",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(not is_installed("openvino"), reason="needs openvino"),
    ),
]


def converted():
    source = seasoned(NETS["inverted"]())
    return dynamize(source, 2, split="exact", input_size=(3, 8, 8)).model.eval()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_level_in_an_engine_gives_what_it_gives(engine):
    level = freeze(converted(), 0.5)
    fast = prepare(level, images(1), engine=engine, batch_sizes=(1, 3), threads=1)
    assert isinstance(fast, EngineNetwork)
    for batch in (1, 3, 5, 0):
        with torch.no_grad():
            torch.testing.assert_close(fast(images(batch)), level(images(batch)))
    x = images(3)
    x[1, 0, 0, 0] = torch.nan
    assert fast(x).isnan().any(1).tolist() == [False, True, False]
    with pytest.raises(ArgumentError, match="cannot be pickled"):
        fast.__reduce_ex__(2)
    for size in ((3, 10, 10), (3, 16, 4)):  # an engine may answer these with other numbers
        x = torch.randn(2, *size)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), level(x))
    for odd, said in (
        (x[0], r"got \(3, 16, 4\)"),
        ([x], "got list"),
        (x.double(), "torch.float64"),
    ):
        with pytest.raises(ArgumentError, match=said):
            fast(odd)
    with pytest.raises(ArgumentError, match="cannot be trained"):
        fast.train()
    with pytest.raises(ArgumentError, match="stays on its device"):
        fast.double()


def test_a_cascade_of_sessions_answers_as_before(monkeypatch):
    stops, opening = [], onnxruntime.InferenceSession

    def noted(file, options, **how):
        stops.append(options.get_session_config_entry("session.force_spinning_stop"))
        return opening(file, options, **how)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    model = converted()
    small, whole = freeze(model, 0.5), freeze(model, 1.0)
    with torch.no_grad():
        sure = small(images(40)).softmax(-1).topk(2).values.diff(dim=1).abs().flatten()
    cascade = Cascade([small, whole], [float(sure.sort().values[19:21].mean())])
    fast = prepare(cascade, images(1), engine="onnxruntime", threads=1)
    assert all(isinstance(network, EngineNetwork) for network in fast.networks)
    x = images(40)
    with torch.no_grad(), record_exits(cascade) as before:
        expected = cascade(x)
    with record_exits(fast) as after:
        torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(before.levels, after.levels)
    assert len(before.levels.unique()) == 2
    assert stops == ["1", "1"]  # spinning threads of one network would slow the other
    prepare(whole, images(1), engine="onnxruntime", threads=1)
    assert stops == ["1", "1", "0"]


@pytest.mark.parametrize("has_bf16", [True, False])
def test_bfloat16_runs_in_openvino_where_the_processor_has_it(monkeypatch, has_bf16):
    pytest.importorskip("openvino", reason="needs openvino")
    asked = []

    def opened(engine, file, threads, precision, size, **how):
        asked.append((engine, precision))
        return open_session(engine, file, threads, precision, size, **how)

    monkeypatch.setattr(alone_module.session, "has_bf16", lambda: has_bf16)
    monkeypatch.setattr(engine_module, "open_session", opened)
    level = freeze(converted(), 0.5).bfloat16()
    x = images(3).bfloat16()
    with pytest.raises(ArgumentError, match="runs float32 images"):
        prepare(level, x, engine="onnxruntime", threads=1)
    if not has_bf16:
        with pytest.raises(ArgumentError, match="bfloat16 too, if the processor has it"):
            prepare(level, x, engine="openvino", threads=1)
        return
    fast = prepare(level, x, engine="openvino", threads=1)
    assert set(asked) == {("openvino", "bf16")}
    with torch.no_grad():
        expected = level(x)
    got = fast(x)
    assert got.dtype is torch.bfloat16
    scale = float(expected.float().abs().max())
    torch.testing.assert_close(got.float(), expected.float(), rtol=0, atol=0.05 * scale)
    with pytest.raises(ArgumentError, match=r"images are torch\.float32"):
        fast(x.float())


@pytest.mark.parametrize("fastest", ["torch", "onnxruntime"])
def test_auto_takes_the_fastest(monkeypatch, fastest):
    monkeypatch.setattr(choosing, "fastest_engine", lambda *_: fastest)
    fast = prepare(freeze(converted(), 0.5), images(1), threads=1)
    assert isinstance(fast, EngineNetwork) == (fastest == "onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize(("slower", "chosen"), [(1e3, "torch"), (1e-6, "onnxruntime")])
def test_the_fastest_is_measured(monkeypatch, slower, chosen):
    monkeypatch.setattr(engine_module, "own_engines", lambda image: [ORT])
    monkeypatch.setattr(alone_module.Alone, "seconds", lambda self, which: slower)
    level = freeze(converted(), 0.5)
    assert engine_module.fastest_engine(level, level, images(1), 1, (1, 2)) == chosen


def test_engines_that_cannot_be(monkeypatch, caplog):
    model = converted()
    level = freeze(model, 0.5)
    with pytest.raises(ArgumentError, match="has gates, which run in PyTorch"):
        prepare(model, images(1), engine="onnxruntime")
    with pytest.raises(ArgumentError, match="choose one of auto, torch, onnxruntime"):
        prepare(level, images(1), engine="tensorrt")
    with pytest.raises(ArgumentError, match=r"runs float32 images on the CPU .* bfloat16 too"):
        prepare(level.double(), images(1).double(), engine="onnxruntime")
    with pytest.raises(ArgumentError, match="does not run there"):
        prepare(LastDecides().eval(), torch.ones(1, 3, 8, 8), engine="onnxruntime")
    assert "does not run LastDecides" in caplog.text
    monkeypatch.setattr(engine_module, "is_installed", lambda name: False)
    with pytest.raises(ArgumentError, match=r'pip install "dmnn-convert\[deploy\]"'):
        prepare(freeze(model, 0.5), images(1), engine="onnxruntime")
