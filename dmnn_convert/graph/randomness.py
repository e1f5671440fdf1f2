"""Random numbers from streams of their own, for the thread that asks for them.

A trace and a check run a user's forward, which may draw. What it draws comes from streams that
nobody else has, so that the process keeps its generators, and no draw of another thread is lost or
comes twice. In a trace each draw is noted: a graph would make it once and for all.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .exchange import Exchange
from .lines import running_line


class Draws(TorchDispatchMode):
    """Streams of random numbers, for the thread that enters this and exchanges `functions`.

    Args:
        seed: of each stream.

    Attributes:
        lines: the line of the user's code that made each draw, as "file:line".
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed = seed
        self.lines: list[str] = []
        self.states: dict[torch.device, torch.Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs or {})
        self.lines.append(running_line())
        generators = _generators()
        outside = [generator.get_state() for generator in generators]
        for generator in generators:
            state = self.states.get(generator.device)
            if state is None:
                generator.manual_seed(self.seed)
            else:
                generator.set_state(state)
        try:
            return func(*args, **kwargs or {})
        finally:
            for generator, state in zip(generators, outside, strict=True):
                self.states[generator.device] = generator.get_state()
                generator.set_state(state)

    def reason(self, since: int = 0) -> str | None:
        """Return why a forward that drew, after so many draws, cannot be traced; else None."""
        if len(self.lines) <= since:
            return None
        line = self.lines[since]
        where = f" ({line})" if line else ""
        return f"its forward draws random numbers in Python{where}, which a new forward would not"

    def functions(self) -> dict[tuple[Any, str], Callable[..., Any]]:
        """Return, by holder and name, what draws in Python as what draws from these streams."""
        found: dict[tuple[Any, str], Callable[..., Any]] = {}
        for holder in (torch, torch.random):
            found[holder, "manual_seed"] = found[holder, "seed"] = self._noted(self._reseed)
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

    def _reseed(self, seed: int | None = None) -> torch.Generator:
        """Do what `torch.manual_seed` and `torch.seed` do, to the streams alone."""
        value = self.seed if seed is None else int(seed)
        for generator in _generators():
            own = torch.Generator(generator.device)
            self.states[generator.device] = own.manual_seed(value).get_state()
        return torch.default_generator


_NUMPY_FUNCTIONS = {"seed": "seed", "ranf": "random_sample", "sample": "random_sample"}
"""Functions of numpy.random that are no methods -> the methods that they call."""


def _methods_of(module: Any, kind: type) -> list[str]:
    """Return the functions of a module that are methods of its one hidden generator."""
    methods = {name: getattr(f, "__self__", None) for name, f in vars(module).items()}
    return [name for name, holder in methods.items() if isinstance(holder, kind)]


@contextmanager
def own_streams(model: nn.Module, seed: int = 0) -> Iterator[Draws]:
    """Let what a model draws in this thread, while the body runs it, come from streams of its own.

    Args:
        model: what the body runs.
        seed: of each stream.
    """
    draws = Draws(seed)
    with Exchange(draws.functions()) as exchange:
        for module in model.modules():
            exchange.search(module.forward)
        with draws:
            yield draws


def _generators() -> list[torch.Generator]:
    """Return the generators that operations draw from if they are given none."""
    on_cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    return [torch.default_generator, *on_cuda]
