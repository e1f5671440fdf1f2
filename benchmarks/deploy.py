"""Times of deployed levels and cascades over dense networks in the same engine; int8's accuracy.

    python benchmarks/deploy.py --threads 2 --data DIR --checkpoints DIR --csv docs/deploy.csv

Networks are torchvision's, of random weights, at 224 pixels: times do not depend on weights. Each
time is taken in a process of its own, alone, which loads one file in one engine; all in turn,
several rounds. T is the median of one over that of the dense network, F the ratio of their
multiply-accumulates. Accuracies are of the CIFAR-10 checkpoints in --checkpoints on the test images
of --data, and need both.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ENGINES = ("onnxruntime", "openvino")
BATCHES = (1, 8)
SHARE = 0.25
"""Of the images of a timed cascade, what its larger network answers as well."""


class Row(NamedTuple):
    """One figure and the bounds that it is held against."""

    what: str
    network: str
    engine: str
    batch: int | str
    F: float | str
    figure: float
    must: float | str = ""
    reach: float | str = ""

    @property
    def met(self) -> str:
        """Which bound the figure meets."""
        bounds = {"reach": self.reach, "must": self.must}
        return next((n for n, b in bounds.items() if b != "" and self.figure <= float(b)), "-")


def timed(file: str, engine: str, precision: str, batch: int, threads: int) -> float:
    """Return the median time of a batch in this process, in milliseconds."""
    import numpy as np

    from dmnn_convert.deployment.loaded import LoadedDeployment

    ask = LoadedDeployment.engines[engine](file, precision, threads)
    images = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
    return clocked(lambda: ask(images))


def timed_whole(folder: str, engine: str, batch: int, threads: int) -> dict[str, float]:
    """Return the times of a cascade, of its first network on all, and its second on the rest."""
    import numpy as np

    from dmnn_convert import load_deployed

    run = load_deployed(folder, engine=engine, threads=threads)
    images = np.load(Path(folder).parent / "images.npy")[:batch]
    levels = run.answered(images)[1]
    rest = images[levels > 0]
    cheap, larger = run.networks
    return {
        "whole": clocked(lambda: run(images)),
        "cheap": clocked(lambda: cheap(images)),
        "larger": clocked(lambda: larger(rest)) if len(rest) else 0.0,
        "escalated": len(rest) / batch,
    }


def clocked(call: Callable[[], Any], seconds: float = 2.0) -> float:
    """Return the median time of calls, in milliseconds."""
    taken: list[float] = []
    for _ in range(3):
        call()
    while len(taken) < 5 or sum(taken) < seconds:
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(taken)


START = """
import time; begun = time.perf_counter()
import sys; sys.path.insert(0, sys.argv[1])
import numpy as np
from run_deployed import Deployed
Deployed(sys.argv[1], sys.argv[2], int(sys.argv[3]))(np.zeros((1, 3, 224, 224), np.float32))
print(time.perf_counter() - begun)
"""


def child(*words: object) -> Any:
    """Run this script, or code, in a process of its own, and return what it prints."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def write(arch: str, root: Path) -> dict[str, float]:
    """Deploy a dense network, its half, that in int8, and a cascade; return each one's F."""
    import numpy as np
    import torch
    from torchvision import models

    from dmnn_convert import Cascade, deploy, dynamize, freeze
    from dmnn_convert.dryrun import measure

    torch.manual_seed(0)
    source, images = getattr(models, arch)().eval(), torch.randn(32, 3, 224, 224)
    half = freeze(dynamize(source, 2).model.eval(), 0.5)
    quartered = dynamize(source, 4).model.eval()
    networks = [freeze(quartered, 0.25), freeze(quartered, 1.0)]
    with torch.no_grad():
        best = networks[0](images).softmax(1).topk(2).values
    sure = (best[:, 0] - best[:, 1]).sort()
    count = round(SHARE * len(images))
    cascade = Cascade(networks, [float(sure.values[count - 1 : count + 1].mean())])
    # Unsure images evenly among the others, so that each batch of 8 has its share.
    by_turns = sure.indices[torch.arange(len(images)).view(-1, count).t().flatten()]
    np.save(root / "images.npy", images[by_turns].numpy())
    how: dict[str, Any] = {"engine": "onnxruntime"}
    deploy(source, root / "dense", images[:2], **how)
    deploy(half, root / "half", images[:2], **how)
    batches = [images[i : i + 4] for i in range(0, 16, 4)]
    deploy(half, root / "int8", images[:2], precision="int8", calibration=batches, **how)
    deploy(cascade, root / "cascade", images[:2], **how)
    dense, small, cheap, larger = (
        measure(n, (3, 224, 224)).macs[""] for n in (source, half, *networks)
    )
    return {"half": small / dense, "cascade": (cheap + SHARE * larger) / dense}


def speed_rows(arch: str, threads: int, rounds: int) -> Iterator[Row]:
    """Yield the rows of one architecture."""
    bounds = {"resnet50": (1.35, 1.2), "mobilenet_v2": (1.25, 1.05)}[arch]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        F = write(arch, root)
        forms = [(e, "fp32", f) for e in ENGINES for f in ("dense", "half")]
        forms += [("openvino", "bf16", "half"), *((e, "int8", "int8") for e in ENGINES)]
        found: dict[Any, list[float]] = {}
        whole: dict[Any, list[dict[str, float]]] = {}
        starts: dict[str, list[float]] = {e: [] for e in ENGINES}
        for _ in range(rounds):
            for batch in BATCHES:
                for engine, precision, form in forms:
                    file = root / form / "network.onnx"
                    words = ("--child", file, engine, precision, batch, threads)
                    time_of = child(__file__, *words)
                    found.setdefault((engine, precision, form, batch), []).append(time_of)
                for engine in ENGINES:
                    words = ("--child", root / "cascade", engine, "", batch, threads)
                    whole.setdefault((engine, batch), []).append(child(__file__, *words))
            for engine in ENGINES:
                starts[engine].append(child("-c", START, root / "dense", engine, threads))
        ms = {key: statistics.median(times) for key, times in found.items()}
        for batch in BATCHES:
            fastest = min(ms[e, "fp32", "dense", batch] for e in ENGINES)
            for engine in ENGINES:
                dense, half = (ms[engine, "fp32", f, batch] for f in ("dense", "half"))
                yield Row("dense, ms", arch, engine, batch, 1.0, dense)
                must, reach = (bound * F["half"] for bound in bounds)
                yield Row("level ½, T", arch, engine, batch, F["half"], half / dense, must, reach)
                q = ms[engine, "int8", "int8", batch] / half
                yield Row("int8 level over its fp32", arch, engine, batch, F["half"], q, 0.8, 0.6)
                parts = {k: median_of(whole[engine, batch], k) for k in whole[engine, batch][0]}
                alone = parts["whole"] / (parts["cheap"] + parts["larger"])
                yield Row("cascade over its parts", arch, engine, batch, "", alone, 1.1, 1.03)
                if batch > 1:  # one image escalates or does not; a batch has its share
                    T = parts["whole"] / dense
                    yield Row("cascade, T", arch, engine, batch, F["cascade"], T, 0.75, 0.65)
            T = ms["openvino", "bf16", "half", batch] / fastest
            what = "bf16 level over the fastest fp32 dense"
            yield Row(what, arch, "openvino", batch, F["half"], T, 0.45, 0.35)
        for engine, seconds in starts.items():
            s = statistics.median(seconds)
            limits = (1.0, 0.4) if arch == "mobilenet_v2" else ("", "")
            yield Row("import and first answer, s", arch, engine, 1, 1.0, s, *limits)


def median_of(parts: list[dict[str, float]], name: str) -> float:
    """Return the median of one entry over the rounds."""
    return statistics.median(part[name] for part in parts)


def accuracy_rows(data: Path, checkpoints: Path, threads: int) -> Iterator[Row]:
    """Yield int8's loss of accuracy on the CIFAR-10 checkpoints, alone and in a cascade."""
    import numpy as np
    import torch
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder

    from dmnn_convert import Cascade, deploy, dynamize, freeze, load_deployed

    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import cifar_resnet

    norm = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    how = T.Compose([T.ToTensor(), norm])
    train, test = (ImageFolder(str(data / part), how) for part in ("train", "test"))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:1000].tolist()
    held = [train[i] for i in order]
    batches = [stacked(held[i : i + 50]) for i in range(0, len(held), 50)]
    tested = [stacked([test[j] for j in range(i, i + 250)]) for i in range(0, len(test), 250)]
    levels = {}
    for depth in (20, 56):
        net = getattr(cifar_resnet, f"resnet{depth}")()
        (file,) = checkpoints.glob(f"resnet{depth}-*.th")
        state = torch.load(file, weights_only=True, map_location="cpu")["state_dict"]
        net.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
        model = dynamize(net, 2, split="exact", input_size=(3, 32, 32)).model.eval()
        levels[depth] = freeze(model, 1.0)
    cascade = Cascade.fit([levels[20], levels[56]], batches, flops_ratio=0.7)
    networks = {"ResNet-20": levels[20], "ResNet-56": levels[56], "ResNet-20 → 56": cascade}
    for name, network in networks.items():
        right = {}
        for precision in ("fp32", "int8"):
            with tempfile.TemporaryDirectory() as folder:
                ways = {"engine": "onnxruntime", "precision": precision, "calibration": batches}
                deploy(network, folder, batches[0][0], **ways)
                run = load_deployed(folder, threads=threads)
                said = [run.answered(images.numpy()) for images, _ in tested]
            hits = [
                (a.argmax(1) == y.numpy()).mean()
                for (a, _), (_, y) in zip(said, tested, strict=True)
            ]
            right[precision] = 100 * float(np.mean(hits))
            yield Row(f"top-1 in {precision}, %", name, "onnxruntime", "", "", right[precision])
            if network is cascade:
                share = float(np.mean([numbers.mean() for _, numbers in said]))
                what = f"escalated in {precision}, share"
                yield Row(what, name, "onnxruntime", "", "", share)
        lost = right["fp32"] - right["int8"]
        yield Row("top-1 lost by int8, points", name, "onnxruntime", "", "", lost, 1.0, 0.3)


def stacked(samples: list[Any]) -> tuple[Any, Any]:
    """Return images (B, C, H, W) and labels (B,)."""
    import torch

    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def main() -> None:
    """Print the rows as they come, and write them."""
    if sys.argv[1:2] == ["--child"]:
        path, engine, precision, batch, threads = sys.argv[2:]
        if precision:
            print(timed(path, engine, precision, int(batch), int(threads)))
        else:
            print(json.dumps(timed_whole(path, engine, int(batch), int(threads))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="*", default=["mobilenet_v2", "resnet50"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    rows: list[Row] = []

    def keep(found: Iterator[Row]) -> None:
        for row in found:
            rows.append(row)
            bounds = f"must {row.must:<6.4} reach {row.reach:<6.4}" if row.must else ""
            name = f"{row.what:40} {row.network:15} {row.engine:12} {row.batch!s:>2}"
            print(f"{name} {row.figure:9.4f}  {bounds} {row.met}", flush=True)

    if given.data and given.checkpoints:
        keep(accuracy_rows(given.data, given.checkpoints, given.threads))
    for arch in given.arch:
        keep(speed_rows(arch, given.threads, given.rounds))
    if given.csv:
        with given.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*Row._fields, "met"])
            for row in rows:
                shown = [f"{v:.4g}" if isinstance(v, float) else v for v in row]
                writer.writerow([*shown, row.met])


if __name__ == "__main__":
    main()
