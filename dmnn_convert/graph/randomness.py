"""Private streams of random numbers, for the thread that draws from them.

A trace and a check run a user's forward, which may draw random numbers. These come from private
streams: the process keeps its generators, and no draw of another thread is lost or repeated. In a
trace each draw is noted, because a graph would freeze its value.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .exchange import Exchange
from .lines import running_line


class Draws(TorchDispatchMode):
    """Private streams of random numbers, for the thread that enters this and swaps `functions`.

    Args:
        seed: of each stream.

    Attributes:
        lines: the line of the user's code that made each draw, as "file:line".
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed = seed
        self.lines: list[str] = []
        self.streams: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        self.lines.append(running_line())
        given = _given_a_generator(func)
        device = _device_of(args, kwargs)
        if device.type == "meta" or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if given is not None and len(args) <= _position_of_generator(given):
            return given(*args, **{**kwargs, "generator": self._stream(device)})
        return self._exchanged(device, func, args, kwargs)

    def _stream(self, device: torch.device) -> torch.Generator:
        if device not in self.streams:
            self.streams[device] = torch.Generator(device).manual_seed(self.seed)
        return self.streams[device]

    def _exchanged(self, device: torch.device, func: Any, args: Any, kwargs: Any) -> Any:
        """Call an operation that draws only from the process's generator, lent the stream's state.

        Another thread may draw from it meanwhile. These operations are few: attention with dropout
        and recurrent layers on a GPU, and `rand_like` before PyTorch 2.10.
        """
        shared = _shared_generator(device)
        stream = self._stream(device)
        outside = shared.get_state()
        shared.set_state(stream.get_state())
        try:
            return func(*args, **kwargs)
        finally:
            stream.set_state(shared.get_state())
            shared.set_state(outside)

    def reason(self, since: int = 0) -> str | None:
        """Return why a forward that drew, after so many draws, cannot be traced; else None."""
        if len(self.lines) <= since:
            return None
        line = self.lines[since]
        where = f" ({line})" if line else ""
        return f"its forward draws random numbers in Python{where}, which a new forward would not"

    def functions(self) -> dict[tuple[Any, str], Callable[..., Any]]:
        """Return, by holder and name, replacements that draw from these streams in Python."""
        found: dict[tuple[Any, str], Callable[..., Any]] = {}
        for holder in (torch, torch.random):
            found[holder, "manual_seed"] = self._noted(self._reseed)
            found[holder, "seed"] = self._noted(self._new_seed)
            found[holder, "set_rng_state"] = self._noted(self._set_state)
            found[holder, "get_rng_state"] = self._state
        python = random.Random(self.seed)
        for name in _methods_of(random, random.Random):
            found[random, name] = self._noted(getattr(python, name))
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            own = numpy.random.RandomState(self.seed)
            names = {name: name for name in _methods_of(numpy.random, numpy.random.RandomState)}
            for name, method in {**names, **_NUMPY_FUNCTIONS}.items():
                found[numpy.random, name] = self._noted(getattr(own, method))
        return found

    def _noted(self, draw: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.lines.append(running_line())
            return draw(*args, **kwargs)

        return noted

    def _reseed(self, seed: int) -> torch.Generator:
        """Do what `torch.manual_seed` does, but only to the streams."""
        self.seed = int(seed)
        self.streams.clear()
        return torch.default_generator

    def _new_seed(self) -> int:
        """Do what `torch.seed` does, but only to the streams, and the same in every run."""
        self._reseed(self.seed + 1)
        return self.seed

    def _state(self) -> torch.Tensor:
        return self._stream(torch.device("cpu")).get_state()

    def _set_state(self, state: torch.Tensor) -> None:
        self._stream(torch.device("cpu")).set_state(state)


_NUMPY_FUNCTIONS = {"seed": "seed", "ranf": "random_sample", "sample": "random_sample"}
"""Functions of numpy.random that are no methods -> the methods that they call."""


def _methods_of(module: Any, kind: type) -> list[str]:
    """Return the functions of a module that are methods of its one hidden generator."""
    methods = {name: getattr(f, "__self__", None) for name, f in vars(module).items()}
    return [name for name, holder in methods.items() if isinstance(holder, kind)]


@contextmanager
def own_streams(model: nn.Module, seed: int = 0) -> Iterator[Draws]:
    """Let a model, run by the body in this thread, draw from private streams.

    Args:
        model: the model that the body runs.
        seed: of each stream.
    """
    draws = Draws(seed)
    with Exchange(draws.functions()) as exchange:
        for module in model.modules():
            exchange.search(module.forward)
        with draws:
            yield draws


@functools.cache
def _given_a_generator(func: Any) -> Any | None:
    """Return the overload of an operation that takes a generator, or None."""
    names = [argument.name for argument in func._schema.arguments]
    if "generator" in names:
        return func
    for name in func.overloadpacket.overloads():
        other = getattr(func.overloadpacket, name)
        others = [argument.name for argument in other._schema.arguments]
        if "generator" in others and [n for n in others if n != "generator"] == names:
            return other
    return None


def _position_of_generator(func: Any) -> int:
    return [argument.name for argument in func._schema.arguments].index("generator")


def _device_of(args: Any, kwargs: Mapping[str, Any]) -> torch.device:
    """Return the device on which an operation draws."""
    device = kwargs.get("device")
    if device is None:
        tensors = (value for value in args if isinstance(value, torch.Tensor))
        device = next((tensor.device for tensor in tensors), "cpu")
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _shared_generator(device: torch.device) -> torch.Generator:
    """Return the generator that operations use by default."""
    on_cuda = device.type == "cuda"
    return torch.cuda.default_generators[device.index] if on_cuda else torch.default_generator
