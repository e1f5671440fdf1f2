"""A deployed cascade as one ONNX file: its networks, and its policy as branches.

Any program that runs ONNX runs it, in any language, without the runner's few lines of NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..convert import deviation_of
from ..errors import ConversionError
from ..optional import needed
from .checks import BOUNDS
from .export import EXTRA
from .loaded import LoadedDeployment
from .run_deployed import DESCRIPTION, confidence

ONE_FILE = "cascade.onnx"


def write_one_file(folder: Path, told: Mapping[str, Any], images: Any) -> None:
    """Write a cascade that lies in a folder as one file in it, once it answers as the runner does.

    The file maps "images" (batch, C, H, W) to "answers" (batch, classes) and "levels" (batch,), the
    number of the network that gave each answer.

    Args:
        folder: holds a file for each network, and their description.
        told: the description.
        images: (B, C, H, W) to compare answers on: every network asked for all of them, one, for
            half of them, and as described.

    Raises:
        ConversionError: if the file's answers are others.
    """
    onnx = needed("onnx", EXTRA)
    networks = [onnx.load(folder / name) for name in told["networks"]]
    opset = max(_opset(network) for network in networks)
    networks = [
        network
        if _opset(network) == opset
        else onnx.version_converter.convert_version(network, opset)
        for network in networks
    ]
    own, runner = told["thresholds"], LoadedDeployment(folder, "onnxruntime")
    halves = [_half(confidence(ask(images), told["confidence"])) for ask in runner.networks[:-1]]
    for thresholds in ([2.0] * len(own), [-2.0] * len(own), halves, own):
        runner.told = {**told, "input": list(told["input"]), "thresholds": thresholds}
        model = _cascade(networks, runner.told)
        (folder / ONE_FILE).write_bytes(model.SerializeToString())
        _check(folder / ONE_FILE, runner, images)


def _half(sure: Any) -> float:
    """Return a threshold that half of the images are below, and that is none's own."""
    return float(np.median(np.sort(sure)[len(sure) % 2 :])) if len(sure) > 1 else 2.0


def _opset(network: Any) -> int:
    return int(next(own.version for own in network.opset_import if not own.domain))


def _check(file: Path, runner: LoadedDeployment, images: Any) -> None:
    """Compare the file with the runner, in a batch and for one image."""
    onnxruntime = needed("onnxruntime", EXTRA)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in (images, images[:1]):
        answers, levels = runner.answered(batch)
        got, asked = session.run(None, {"images": batch})
        off = deviation_of([torch.from_numpy(got)], [torch.from_numpy(answers)])
        if off > BOUNDS["fp32"] or not np.array_equal(levels, asked):
            raise ConversionError(
                f"deploy(one_file=True): the single file's answers are off by {off:.1e} from those "
                f"of {DESCRIPTION}'s networks; deploy without it, and use the runner."
            )


def _cascade(networks: Sequence[Any], told: Mapping[str, Any]) -> Any:
    helper = needed("onnx", EXTRA).helper
    graph = _Graph("")
    answers, levels = _answered(graph, networks, told, 0, "images", None)
    # An infinite or missing value makes the difference NaN, which engines keep in a sum.
    odd = graph.add("ReduceSum", graph.add("Sub", "images", "images"), graph.constant([1, 2, 3]))
    rows = graph.add("Reshape", odd, graph.constant([-1, 1]))
    graph.add("Add", answers, rows, output="answers")
    graph.add("Identity", levels, output="levels")
    (images,) = networks[0].graph.input
    model = helper.make_model(
        graph.closed("cascade", {"answers": told["output"], "levels": []}, [images]),
        opset_imports=networks[0].opset_import,
        ir_version=max(network.ir_version for network in networks),
        producer_name="dmnn-convert",
    )
    needed("onnx", EXTRA).checker.check_model(model)
    return model


def _answered(
    graph: _Graph,
    networks: Sequence[Any],
    told: Mapping[str, Any],
    number: int,
    images: str,
    total: str | None,
) -> tuple[str, str]:
    """Add a network and all after it to a graph; return the names of answers and of levels.

    Args:
        graph: where to.
        networks: of the cascade.
        told: thresholds, of which confidence, and whether probabilities are averaged.
        number: of the network.
        images: the name of those that it is asked about.
        total: the name of the sum of the earlier networks' probabilities of these; None if it is
            the first, or nothing is averaged.
    """
    own = graph.run(networks[number], images)
    probabilities = graph.add("Softmax", own, axis=-1)
    answers, known = own, probabilities if told["mean"] else None
    if total is not None:
        known = graph.add("Add", total, probabilities)
        count = graph.constant(np.float32(number + 1))
        answers = graph.add("Log", graph.add("Div", known, count))
    levels = graph.add("Expand", graph.constant([number]), graph.add("Shape", own, end=1))
    if number == len(told["thresholds"]):
        return answers, levels
    sure = _confidence(graph, probabilities, told)
    unsure = graph.add("Less", sure, graph.constant(np.float32(told["thresholds"][number])))
    rows = graph.add("Reshape", graph.add("NonZero", unsure), graph.constant([-1]))
    some = graph.add("Greater", graph.add("Size", rows), graph.constant(0))

    larger = _Graph(f"{graph.prefix}larger/")
    asked = larger.add("Gather", images, rows)
    before = None if known is None else larger.add("Gather", known, rows)
    theirs = _answered(larger, networks, told, number + 1, asked, before)
    places = larger.add("Unsqueeze", rows, larger.constant([1]))
    merged = [
        larger.add("ScatterND", ours, places, new)
        for ours, new in zip((answers, levels), theirs, strict=True)
    ]
    sure_of_all = _Graph(f"{graph.prefix}sure/")
    kept = [sure_of_all.add("Identity", name) for name in (answers, levels)]
    return graph.branch(
        some,
        *(
            each.closed(each.prefix, {names[0]: None, names[1]: []}, [])
            for each, names in ((larger, merged), (sure_of_all, kept))
        ),
    )


def _confidence(graph: _Graph, probabilities: str, told: Mapping[str, Any]) -> str:
    """Add the confidence of each image, as the runner computes it."""
    if told["confidence"] == "margin":
        best = graph.add("TopK", probabilities, graph.constant([2]), outputs=2)
        first, second = (
            graph.add("Gather", best, graph.constant(place), axis=1) for place in (0, 1)
        )
        return graph.add("Sub", first, second)
    floor = graph.constant(np.float32(1e-38))
    logs = graph.add("Log", graph.add("Max", probabilities, floor))
    terms = graph.add("Mul", probabilities, logs)
    entropy = graph.add("ReduceSum", terms, graph.constant([1]), keepdims=0)
    classes = graph.constant(np.float32(np.log(told["output"][-1])))
    return graph.add("Add", graph.add("Div", entropy, classes), graph.constant(np.float32(1)))


class _Graph:
    """Nodes and weights of an ONNX graph under construction.

    Args:
        prefix: of all names in it, which no other graph of the model has.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.onnx = needed("onnx", EXTRA)

    def _name(self) -> str:
        return f"{self.prefix}{len(self.nodes)}.{len(self.weights)}"

    def add(self, kind: str, *inputs: str, output: str = "", outputs: int = 1, **how: Any) -> str:
        """Add a node; return the name of its first output."""
        first = output or self._name()
        names = [first, *(f"{first}+{i}" for i in range(1, outputs))]
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, names, **how))
        return first

    def constant(self, value: Any) -> str:
        """Add a number, or a list of whole numbers; return its name."""
        name = self._name()
        self.weights.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def run(self, network: Any, images: str) -> str:
        """Add a network; return the name of its answers to some images."""
        inner = self.onnx.compose.add_prefix(network, f"{self.prefix}network/").graph
        self.add("Identity", images, output=inner.input[0].name)
        self.nodes += inner.node
        self.weights += inner.initializer
        return str(inner.output[0].name)

    def branch(self, condition: str, then: Any, otherwise: Any) -> tuple[str, str]:
        """Add a choice between two graphs of two outputs; return the outputs' names."""
        first = self.add("If", condition, outputs=2, then_branch=then, else_branch=otherwise)
        return first, f"{first}+1"

    def closed(
        self, name: str, outputs: Mapping[str, Sequence[int] | None], inputs: Sequence[Any]
    ) -> Any:
        """Return the graph; its first output holds floats, the second whole numbers."""
        types = (self.onnx.TensorProto.FLOAT, self.onnx.TensorProto.INT64)
        told = [
            self.onnx.helper.make_tensor_value_info(
                output, kind, None if shape is None else ["batch", *shape]
            )
            for (output, shape), kind in zip(outputs.items(), types, strict=True)
        ]
        return self.onnx.helper.make_graph(self.nodes, name, inputs, told, self.weights)
