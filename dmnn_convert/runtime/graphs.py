"""CUDA graphs: a whole pass as one launch, without Python between its kernels."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from ..text import first_line
from .branches import as_nodes, warming_up

_log = logging.getLogger(__name__)


_WARM_UP = 3
"""Calls before one is captured: libraries initialise in the first ones."""


class Graph:
    """A call on tensors of fixed sizes, captured; each replay runs the very same kernels.

    Args:
        call: must not read any value from the device.
        examples: its arguments, on the device, of the sizes and formats to be used.
        branches: whether the call takes branches, which become conditional nodes.

    Raises:
        RuntimeError: if the call cannot be captured.
        ImportError: for branches, if this PyTorch cannot capture them.
    """

    def __init__(
        self, call: Callable[..., Tensor], examples: tuple[Tensor, ...], *, branches: bool = False
    ) -> None:
        # Tensors made in inference mode could be written only in that mode, in every later call.
        with torch.inference_mode(False), torch.no_grad():
            self.inputs = tuple(example.clone() for example in examples)
            device = self.inputs[0].device
            main, beside = torch.cuda.Stream(device), torch.cuda.Stream(device)
            main.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(main), warming_up() if branches else nullcontext():
                for _ in range(_WARM_UP):
                    call(*self.inputs)
            torch.cuda.current_stream(device).wait_stream(main)
            self.graph = torch.cuda.CUDAGraph()
            # Other threads may use the device during this capture.
            capture = torch.cuda.graph(self.graph, stream=main, capture_error_mode="thread_local")
            with _beside(beside), capture, as_nodes() if branches else nullcontext():
                self.output = call(*self.inputs)

    def replay(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the call's result for inputs of the same sizes."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.output.clone()


class Graphs:
    """Graphs by key and stream, captured on first use. Copies start without any."""

    def __init__(self) -> None:
        self._held: dict[Hashable, Graph] = {}
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, object]) -> Graphs:
        return Graphs()

    def run(
        self, key: Hashable, call: Callable[..., Tensor], *inputs: Tensor, branches: bool = False
    ) -> Tensor:
        """Return ``call(*inputs)``; the key stands for the call and the inputs' sizes."""
        # A graph owns the memory that it reads and writes: one pass at a time, on one stream.
        place = key, torch.cuda.current_stream(inputs[0].device).cuda_stream
        with self._lock:
            if place not in self._held:
                self._held[place] = Graph(call, inputs, branches=branches)
            return self._held[place].replay(inputs)


def can_be_graphed(call: Callable[[Tensor], object], images: Tensor) -> bool:
    """Return whether a call returns one tensor and reads nothing from the device meanwhile."""
    with torch.no_grad():
        if not isinstance(call(images), Tensor):
            return False
    try:
        Graph(call, (images,))  # type: ignore[arg-type]
    except RuntimeError as error:
        _log.warning(
            "the network cannot become a CUDA graph (%s); it runs kernel by kernel.",
            first_line(error),
        )
        return False
    return True


_capture = threading.local()


@contextmanager
def _beside(stream: torch.cuda.Stream) -> Iterator[None]:
    """Run the calls `run_beside` inside on a separate stream."""
    _capture.beside = stream
    try:
        yield
    finally:
        _capture.beside = None


def run_beside(
    call: Callable[[], Tensor], device: torch.device, reads: object = None
) -> Callable[[], Tensor]:
    """Begin a call, in a `Graph` parallel to what follows; return a function that awaits it.

    All such calls run on one stream, one after another. The memory of a freed tensor may be reused
    at once by the next operation on the tensor's stream. If streams were mixed, the result that one
    call leaves for the next could be overwritten before it is read.

    Args:
        call: the call.
        device: its device.
        reads: inputs of the call that nothing else holds; kept until the result is there.
    """
    beside: torch.cuda.Stream | None = getattr(_capture, "beside", None)
    if beside is None:
        result = call()
        return lambda: result
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside):
        result = call()

    held = result, reads

    def wait() -> Tensor:
        torch.cuda.current_stream(device).wait_stream(beside)
        return held[0]

    return wait
