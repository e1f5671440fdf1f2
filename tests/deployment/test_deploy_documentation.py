"""The code of docs/deploy.md runs as it stands, the service without PyTorch."""

import io
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
BLOCKS = [
    part.split("```")[0] for part in PAGE.read_text(encoding="utf-8").split("```python\n")[1:]
]

SERVED = """
import sys, threading
import service
server = service.ThreadingHTTPServer(("127.0.0.1", 0), service.Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
assert not {"torch", "dmnn_convert"} & set(sys.modules)
print(server.server_port, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("walk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        exec(compile(BLOCKS[0], str(PAGE), "exec"), {})
    return root


def posted(port, array):
    body = io.BytesIO()
    np.save(body, array)
    url = f"http://127.0.0.1:{port}"
    with urllib.request.urlopen(url, body.getvalue(), timeout=60) as reply:
        return json.load(reply)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_engines_run_the_files(number, folder, monkeypatch):
    pytest.importorskip("openvino" if number == 2 else "onnxruntime")
    monkeypatch.chdir(folder)
    names = {}
    exec(compile(BLOCKS[number], str(PAGE), "exec"), names)
    assert names["logits"].shape == (1, 10)


@pytest.mark.slow
def test_the_service_answers(folder):
    (folder / "deployed" / "service.py").write_text(BLOCKS[4], encoding="utf-8")
    assert len(BLOCKS[4].splitlines()) <= 32
    command = [sys.executable, "-c", SERVED]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=folder / "deployed", text=True, **pipes) as server:
        port = int(server.stdout.readline())
        pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
        assert set(posted(port, pictures)["classes"]) <= set(range(10))
        mean, std = np.float32((0.49, 0.48, 0.45)), np.float32((0.25, 0.24, 0.26))
        images = ((np.float32(pictures) / 255 - mean) / std).transpose(0, 3, 1, 2)
        assert posted(port, np.ascontiguousarray(images)) == posted(port, pictures)
        with pytest.raises(urllib.error.HTTPError, match="400") as failed:
            posted(port, images[:, :, :8])
        assert "give float32" in json.load(failed.value)["error"]
        failed.value.close()
        server.stdin.close()


@pytest.mark.slow
def test_the_runner_as_a_command(folder):
    np.save(folder / "images.npy", np.zeros((2, 3, 32, 32), np.float32))
    words = ["deployed/run_deployed.py", "images.npy", "answers.npy", "--threads", "1", "--time"]
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert "first answer" in done.stdout and "answered by each" in done.stdout
    assert np.load(folder / "answers.npy").shape == (2, 10)


def test_the_runner_is_short():
    text = (PAGE.parents[1] / "dmnn_convert" / "deployment" / "run_deployed.py").read_text()
    assert len(text.splitlines()) <= 150
