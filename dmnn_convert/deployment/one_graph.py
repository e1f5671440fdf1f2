"""A deployed cascade as one ONNX graph: its networks, and its policy as branches.

In ONNX Runtime it is faster than a session for each network, with the policy between their calls;
and any program that runs ONNX runs it, in any language.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..convert import deviation_of
from ..errors import ConversionError
from ..optional import needed
from ..text import cause
from .checks import BOUNDS
from .export import EXTRA
from .loaded import LoadedDeployment
from .run_deployed import confidence
from .shared_weights import write_models

CASCADE = "cascade.onnx"
_THRESHOLDS = "thresholds"

_log = logging.getLogger(__name__)


def add_one_graph(folder: Path, files: Sequence[str], images: Any) -> list[str]:
    """Add a cascade's graph to its deployment, if it answers as the networks do one after another.

    It maps "images" (batch, C, H, W) to "answers" (batch, classes) and "levels" (batch,), the
    number of the network that gave each answer.

    Args:
        folder: holds the networks and their description.
        files: what lies there.
        images: (B, C, H, W) to compare answers on.

    Returns:
        The files that lie there now. Without the graph they are as before, and a warning says why.
    """
    runner, load = LoadedDeployment(folder, "onnxruntime"), needed("onnx", EXTRA).load
    with tempfile.TemporaryDirectory(dir=folder) as name:
        apart = Path(name)
        models = {file: load(folder / file) for file in runner.told["networks"]}
        try:
            models[CASCADE] = _one_graph(list(models.values()), runner.told)
            added = write_models(apart, models)
            _check(apart / CASCADE, models[CASCADE], runner, images)
        except Exception as error:  # whatever ONNX and its engine meet
            _log.warning(
                "deploy: leaves %s out (%s); the networks answer one after another, which takes "
                "longer for few images.",
                *(CASCADE, cause(error)),
            )
            return list(files)
        for file in added:
            (apart / file).replace(folder / file)
    return added


def _check(file: Path, model: Any, runner: LoadedDeployment, images: Any) -> None:
    """Compare a cascade's graph with its networks one after another, whatever the thresholds.

    Every network is asked for all images, for one, for half of them, and as the cascade is
    described; in a batch and for the first image alone.

    Raises:
        ConversionError: if its answers are others.
    """
    onnx, onnxruntime = needed("onnx", EXTRA), needed("onnxruntime", EXTRA)
    onnx.checker.check_model(file)
    told, own = runner.told, runner.told["thresholds"]
    given = next(weight for weight in model.graph.initializer if weight.name == _THRESHOLDS)
    halves = [_half(confidence(ask(images), told["confidence"])) for ask in runner.networks[:-1]]
    for thresholds in ([2.0] * len(own), [-2.0] * len(own), halves, own):
        runner.told = {**told, "thresholds": thresholds}
        given.CopyFrom(_weight(_THRESHOLDS, np.asarray(thresholds, np.float32)))
        file.write_bytes(model.SerializeToString())  # the last ones are the cascade's own
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for batch in (images, images[:1]):
            answers, levels = runner.answered(batch)
            got, asked = session.run(None, {"images": batch})
            off = deviation_of([torch.from_numpy(got)], [torch.from_numpy(answers)])
            if off > BOUNDS["fp32"] or not np.array_equal(levels, asked):
                raise ConversionError(f"its answers are off by {off:.1e} from the networks'")


def _half(sure: Any) -> float:
    """Return a threshold that half of the images are below, and that is none's own."""
    return float(np.median(np.sort(sure)[len(sure) % 2 :])) if len(sure) > 1 else 2.0


def _opset(network: Any) -> int:
    return int(next(own.version for own in network.opset_import if not own.domain))


def _one_graph(networks: Sequence[Any], told: Mapping[str, Any]) -> Any:
    onnx = needed("onnx", EXTRA)
    opset = max(map(_opset, networks))
    networks = [
        network
        if _opset(network) == opset
        else onnx.version_converter.convert_version(network, opset)
        for network in networks
    ]
    graph = _Graph("")
    graph.weights.append(_weight(_THRESHOLDS, np.asarray(told["thresholds"], np.float32)))
    for name, got in zip(
        ("answers", "levels"), _answered(graph, networks, told, 0, "images", None), strict=True
    ):
        graph.add("Identity", got, output=name)
    (images,) = networks[0].graph.input
    return onnx.helper.make_model(
        graph.closed("cascade", {"answers": told["output"], "levels": []}, [images]),
        opset_imports={o.domain: o for network in networks for o in network.opset_import}.values(),
        ir_version=max(network.ir_version for network in networks),
        producer_name="dmnn-convert",
    )


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
        told: how many thresholds, of which confidence, and whether probabilities are averaged.
        number: of the network.
        images: the name of those that it is asked about.
        total: the name of the sum of the earlier networks' probabilities of these; None if it is
            the first, or nothing is averaged.
    """
    own = graph.run(networks[number], images)
    if number == 0:
        # An image with an infinite or missing value is answered by NaN, and goes no further.
        axes = graph.constant([*range(1, len(told["input"]) + 1)])
        odd = graph.add("ReduceSum", graph.add("Sub", images, images), axes)
        own = graph.add("Add", own, graph.add("Reshape", odd, graph.constant([-1, 1])))
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
    threshold = graph.add("Gather", _THRESHOLDS, graph.constant(number))
    unsure = graph.add("Less", sure, threshold)
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


def _weight(name: str, value: Any) -> Any:
    return needed("onnx", EXTRA).numpy_helper.from_array(value, name)


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
        self.weights.append(_weight(name, np.asarray(value)))
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
