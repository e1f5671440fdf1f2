"""The benchmark of deployments: its bounds, and what a second run leaves out."""

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "deploy.py"
spec = importlib.util.spec_from_file_location("deploy_benchmark", FILE)
benchmark = importlib.util.module_from_spec(spec)
sys.modules["deploy_benchmark"] = benchmark
spec.loader.exec_module(benchmark)
Row = benchmark.Row


def row(figure, must=0.75, reach=0.65, network="resnet50", name="cascade"):
    return Row(name, "cascade, T", network, "openvino", 8, 0.5, figure, must, reach)


@pytest.mark.parametrize(
    ("figure", "met"), [(0.6, "reach"), (0.65, "reach"), (0.7, "must"), (0.8, "NOT met")]
)
def test_a_row_tells_which_bound_it_meets(figure, met):
    found = row(figure)
    assert found.met == met
    assert all(word in str(found) for word in ("must 0.750", "reach 0.650", met))
    assert row(figure, "", "").met == "-"


def test_a_second_run_measures_what_is_missing(tmp_path, monkeypatch, capsys):
    file, asked = tmp_path / "rows.csv", []

    def measured(arch, rows, *_):
        asked.append((arch, rows))
        return [row(0.7, network=arch, name=name) for name in rows]

    monkeypatch.setattr(benchmark, "measured", measured)
    words = ["deploy.py", "--csv", str(file), "--arch", "resnet50", "--rows"]
    monkeypatch.setattr(sys, "argv", [*words, "cascade", "bf16"])
    benchmark.main()
    assert asked == [("resnet50", ["bf16"]), ("resnet50", ["cascade"])]
    monkeypatch.setattr(sys, "argv", [*words, "cascade", "level", "overhead", "start"])
    benchmark.main()
    assert asked[2:] == [("resnet50", ["level"]), ("resnet50", ["overhead"])]
    lines = file.read_text().splitlines()
    assert len(lines) == 5 and lines[0].startswith("row,what,network") and lines[0].endswith("met")
    assert capsys.readouterr().out.count("must 0.750") == 4


@pytest.mark.slow
def test_the_released_networks_rows(capsys, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(benchmark, "ENGINES", ("onnxruntime",))
    monkeypatch.setattr(benchmark.clock, "SECONDS", 0.01)
    found = list(benchmark.measured("resnet20", ["level", "overhead", "cascade"], [], 1, 1))
    by_what = {(r.what, r.batch): r for r in found}
    assert pytest.approx(0.506, abs=0.01) == by_what["level ½ (exact), T", 1].F
    assert pytest.approx(0.259 + 0.25, abs=0.01) == by_what["cascade, T", 8].F
    assert all(r.figure > 0 for r in found) and len(found) == 10
