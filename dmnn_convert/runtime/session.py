"""Sessions of ONNX Runtime and OpenVINO, in this process or in one of its own.

Run as a script it times one session, alone: threads of one engine that spin slow another by half or
more. It needs NumPy and the engine, and neither PyTorch nor this package.
"""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Session = Callable[[Any], list[Any]]
"""Images (B, C, H, W) in, the network's outputs out, as NumPy arrays."""


def open_session(
    engine: str,
    file: str,
    threads: int,
    precision: str = "fp32",
    size: tuple[int, ...] | None = None,
    *,
    alone: bool = True,
) -> Session:
    """Return a session of an ONNX file whose only input are images.

    Args:
        engine: "onnxruntime" or "openvino".
        file: the ONNX file.
        threads: with how many it runs.
        precision: "fp32" or "bf16"; ONNX Runtime has "fp32" alone.
        size: the images' (B, C, H, W), if it is to run no other; OpenVINO is faster then.
        alone: whether no other session runs between its calls. If one does, threads of ONNX
            Runtime stop spinning at the end of a call, which would slow the other one.
    """
    if engine == "openvino":
        return _openvino(file, threads, precision, size)
    return _onnxruntime(file, threads, alone=alone)


def _onnxruntime(file: str, threads: int, *, alone: bool) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", str(int(not alone)))
    options.log_severity_level = 3  # it warns about things that a user cannot change
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (images,) = (put.name for put in session.get_inputs())

    def run(array: Any) -> list[Any]:
        return list(session.run(None, {images: array}))

    return run


def _openvino(file: str, threads: int, precision: str, size: tuple[int, ...] | None) -> Session:
    core = _openvino_core()
    network = core.read_model(file)
    if size is not None:
        network.reshape(list(size))
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(network, "CPU", settings).create_infer_request()
    one_at_a_time = threading.Lock()

    def run(array: Any) -> list[Any]:
        with one_at_a_time:
            found = request.infer([array])
            return [found[i].copy() for i in range(len(found))]

    return run


@functools.cache
def _openvino_core() -> Any:
    """Return the one `Core` of this process, which is never given up.

    Each gives signal handlers a stack of its own, and on its end the stack that it found. Of two,
    the second to end gives back that of the first, which is gone: the next signal (Ctrl-C, the end
    of a loader's process) would end this process without a word.
    """
    import openvino

    return openvino.Core()


def has_bf16() -> bool:
    """Return whether OpenVINO computes in bfloat16 on this processor."""
    return "BF16" in _openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _serve(task: dict[str, Any]) -> None:
    """Answer each line, the number of a batch, with the seconds that it takes."""
    import numpy as np

    batches = [np.load(file) for file in task["batches"]]
    session = open_session(
        task["engine"], task["file"], task["threads"], task["precision"], batches[0].shape
    )
    np.savez(task["answers"], *session(batches[0]))
    _say("ready")
    for line in sys.stdin:
        batch = batches[int(line)]
        session(batch)  # other work has emptied the caches
        begun = time.perf_counter()
        session(batch)
        _say(time.perf_counter() - begun)


def _say(value: object) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules must not shadow others
    _serve(json.loads(sys.argv[1]))
