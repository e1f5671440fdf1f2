"""Notebooks are written from their pages, and every one runs."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import notebooks  # noqa: E402


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_a_notebook_is_its_page_without_outputs(name):
    page = (ROOT / "docs" / "examples" / f"{name}.md").read_text(encoding="utf-8")
    written = (ROOT / "examples" / f"{name}.ipynb").read_text(encoding="utf-8")
    assert written == notebooks.notebook(page), "run python tools/notebooks.py"
    assert sum(cell["cell_type"] == "code" for cell in notebooks.cells(page)) > 2


def test_every_notebook_has_a_page():
    assert {path.stem for path in (ROOT / "examples").glob("*.ipynb")} == set(notebooks.NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", notebooks.NAMES)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    nbclient, nbformat = (pytest.importorskip(each) for each in ("nbclient", "nbformat"))
    pytest.importorskip("ipykernel")
    if name == "onnx_runtime" and not (find_spec("onnxruntime") and find_spec("onnxscript")):
        pytest.skip("ONNX Runtime or onnxscript is not installed")
    for variable in ("IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    kernel = tmp_path / "jupyter_data_dir" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = f'["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
    (kernel / "kernel.json").write_text(f'{{"argv": {command}, "display_name": "Python 3"}}')
    read = nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    done = nbclient.NotebookClient(read, timeout=300, resources=place).execute()
    assert all(cell.get("execution_count") for cell in done.cells if cell.cell_type == "code")
