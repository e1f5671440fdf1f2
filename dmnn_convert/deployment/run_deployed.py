"""Runner of deployed networks: python run_deployed.py images.npy answers.npy --time"""

import argparse
import hashlib
import importlib.util
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

DESCRIPTION, FORMAT, KEPT = "deploy.json", 1, dict[str, Any]()


def on_onnxruntime(file: str, _: str, threads: int | None, alone: bool = True) -> Any:
    """Return a function of images in ONNX Runtime; threads spin on if no other network is next."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.force_spinning_stop", "10"[alone])
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    which = 0 if len(session.get_outputs()) == 1 else slice(None)  # of a cascade, levels as well
    return lambda images: session.run(None, {"images": images})[which]


def on_openvino(file: str, precision: str, threads: int | None, _: bool = True) -> Any:
    """Return a function of images that OpenVINO computes on the CPU; calls wait in line."""
    import openvino

    KEPT["core"] = core = KEPT.get("core") or openvino.Core()  # the end of a second breaks signals
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("this processor has no bf16 arithmetic; deploy with precision='fp32'.")
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads or 0}
    hints["INFERENCE_PRECISION_HINT"] = "bf16" if precision == "bf16" else "f32"
    lock, request = threading.Lock(), core.compile_model(file, "CPU", hints).create_infer_request()

    def ask(images: Any) -> Any:
        with lock:
            return request.infer([images])[0]

    return ask


def softmax(logits: Any) -> Any:
    """Return probabilities (B, K) of logits (B, K)."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def confidence(logits: Any, measure: str) -> Any:
    """Return the distance of the best two probabilities, or one minus the relative entropy."""
    p = np.sort(softmax(logits), -1)
    if measure == "margin":
        return p[:, -1] - p[:, -2]
    return 1 + (p * np.log(np.maximum(p, np.float32(1e-38)))).sum(-1) / np.float32(np.log(len(p.T)))


def digest(data: bytes | dict[str, Any]) -> str:
    """Return the checksum of a file, or of a description."""
    data = data if isinstance(data, bytes) else json.dumps(data, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


class Deployed:
    """A deployed network or cascade: images (B, C, H, W) of float32 in, answers (B, ...) out."""

    engines = {"onnxruntime": on_onnxruntime, "openvino": on_openvino}  # noqa: RUF012

    def __init__(self, directory: Any, engine: str = "auto", threads: int | None = None) -> None:
        self.told = told = self._read(folder := Path(directory))
        here = [e for e in told["engines"] if engine in ("auto", e) and importlib.util.find_spec(e)]
        if not here or (threads or 1) < 1:
            raise ValueError(f"{engine=}, {threads=}: pip install {told['engines']}; threads >= 1.")
        self.engine, make = here[0], self.engines[here[0]]
        self.at_once = "cascade" in told and self.engine == "onnxruntime"
        names = [told["cascade"]] if self.at_once else told["networks"]
        how = (told["precision"], threads, len(names) == 1)
        self.networks = asks = [make(str(folder / name), *how) for name in names]
        if "times" in told:  # gates take one image at a time
            self.networks = [lambda x: np.concatenate([asks[0](one[None]) for one in x])]

    def _read(self, folder: Path) -> Any:
        try:
            told = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            right = {**told["files"], DESCRIPTION: told.pop("sha256")}
            found = {f: digest((folder / f).read_bytes()) for f in told["files"]}
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise OSError(f"{folder}: is incomplete or damaged ({error}).") from error
        odd = [f for f, sha in right.items() if {**found, DESCRIPTION: digest(told)}[f] != sha]
        if odd or told["format"] != FORMAT:
            raise OSError(f"{folder}: {odd or 'its format'} was not deployed so; deploy again.")
        return told

    def __call__(self, images: Any) -> Any:
        """Return the answers to images (B, C, H, W); NaN for an image that is not finite."""
        return self.answered(images)[0]

    def answered(self, images: Any) -> tuple[Any, Any]:
        """Return the answers to images, and the number of the network that gave each, (B,)."""
        told, got = self.told, str(getattr(images, "dtype", type(images).__name__))
        if got != "float32" or list(images.shape[1:]) != told["input"]:
            raise ValueError(f"got {got} {np.shape(images)}; give float32 (B, {told['input']}).")
        levels, asking = np.zeros(len(images), np.int64), np.arange(len(images))
        if len(images) == 0:
            return np.zeros((0, *told["output"]), np.float32), levels
        if self.at_once:
            return tuple(self.networks[0](images))
        with np.errstate(all="ignore"):
            own = answers = self.networks[0](images)  # engines may make numbers of NaN
            answers[~np.isfinite(images).reshape(len(images), -1).all(1)] = np.nan
            total: Any = softmax(own) if told["mean"] else None
            for i, threshold in enumerate(told["thresholds"], 1):
                unsure = confidence(own, told["confidence"]) < np.float32(threshold)
                if not len(asking := asking[unsure]):
                    break
                own, levels[asking] = self.networks[i](images[asking]), i
                total = total[unsure] + softmax(own) if told["mean"] else None
                answers[asking] = np.log(total / (i + 1)) if told["mean"] else own
        return answers, levels


def main() -> None:
    """Answer the images (B, C, H, W) of a .npy file, float32, preprocessed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("images")
    parser.add_argument("answers", help="the .npy file to write")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--time", action="store_true", help="time 20 runs more")
    sys.excepthook = lambda kind, error, _: sys.stderr.write(f"{kind.__name__}: {error}\n")
    given, at = parser.parse_args(), [time.perf_counter()]
    images = np.load(given.images, allow_pickle=False)
    network = Deployed(Path(__file__).parent, given.engine, given.threads)
    for _ in range(21 if given.time else 1):
        answers, levels = network.answered(images)
        at.append(time.perf_counter())
    np.save(given.answers, answers)
    shares = np.bincount(levels, minlength=len(network.told["networks"])) / max(len(images), 1)
    said = f"{network.engine}; answered by each: {shares.round(3).tolist()}\n"
    if given.time:
        said += f"first answer {at[1] - at[0]:.4f} s, then {np.median(np.diff(at[1:])):.4f} s\n"
    sys.stdout.write(said)


if __name__ == "__main__":
    main()
