"""Signals after OpenVINO's sessions have ended: each core gives them a stack of its own."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from dmnn_convert.deployment import run_deployed
from dmnn_convert.runtime import session, write_onnx

FILE = "network.onnx"

OPENS = """
import gc, json, os, runpy, signal, sys

script, function, arguments = sys.argv[1:]
open_one = runpy.run_path(script)[function]
opened = [open_one(*json.loads(arguments)) for _ in range(2)]
while opened:
    del opened[0]  # the first to be opened is the first to end
    gc.collect()
seen = []
signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
os.kill(os.getpid(), signal.SIGUSR1)
print(len(seen))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs signals as Unix has them")
@pytest.mark.parametrize(
    ("script", "function", "arguments"),
    [
        (session.__file__, "open_session", ("openvino", FILE, 1)),
        (run_deployed.__file__, "on_openvino", (FILE, "fp32", 1)),
    ],
    ids=["session", "run_deployed"],
)
def test_a_signal_is_handled_after_two_sessions(script, function, arguments, tmp_path):
    """Ctrl-C ended the process with a segmentation fault; so did the end of a loader's process."""
    pytest.importorskip("openvino")
    write_onnx(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8), tmp_path / FILE)
    command = [sys.executable, "-c", OPENS, script, function, json.dumps(arguments)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout.strip()) == (0, "1"), ran.stderr
