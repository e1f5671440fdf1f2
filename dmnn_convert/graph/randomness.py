"""Random numbers that a forward draws in Python, which a trace would draw once and for all.

Only the draws of the tracing thread are counted, and the generators are restored to their state
before the first. What other threads draw meanwhile is left alone.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

_FUNCTIONS = (
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"),
    *("bernoulli", "normal", "multinomial", "poisson", "binomial", "manual_seed", "seed"),
)


_METHODS = (
    *("bernoulli_", "uniform_", "normal_", "random_", "exponential_", "geometric_", "cauchy_"),
    *("log_normal_", "bernoulli", "multinomial"),
)


class Draws:
    """The count of random numbers drawn, and the way to take the draws back."""

    def __init__(self) -> None:
        self.count = 0
        self.undo: list[Callable[[], None]] = []

    def functions(self) -> dict[tuple[Any, str], Callable[..., Any]]:
        """Return functions that draw, by holder and name, as ones that count as well."""
        return {place: self._counted(getattr(*place)) for place in _places()}

    def _counted(self, draw: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            undo = self.undo or _states()
            result = draw(*args, **kwargs)
            if not isinstance(result, fx.Proxy):  # a node draws in every run
                self.count += 1
                self.undo = undo
            return result

        return counted

    def take_back(self) -> None:
        """Put the generators back where they were before the first draw."""
        for undo in self.undo:
            undo()
        self.undo = []


def _places() -> list[tuple[Any, str]]:
    numpy = sys.modules.get("numpy")
    return [*_known_places(), *(_methods_of(numpy.random) if numpy else ())]


@functools.cache
def _known_places() -> tuple[tuple[Any, str], ...]:
    functions = ((torch, name) for name in _FUNCTIONS)
    methods = ((torch.Tensor, name) for name in _METHODS)
    return (*functions, *methods, *_methods_of(random))


@functools.cache
def _methods_of(module: Any) -> tuple[tuple[Any, str], ...]:
    """Return the functions of a module that are methods of its one hidden generator."""
    generator = getattr(module.random, "__self__", None)
    names = (n for n, f in vars(module).items() if getattr(f, "__self__", None) is generator)
    return tuple((module, n) for n in names if n not in ("getstate", "get_state"))


def _states() -> list[Callable[[], None]]:
    undo: list[Callable[[], None]] = [
        functools.partial(torch.set_rng_state, torch.get_rng_state()),
        functools.partial(random.setstate, random.getstate()),
    ]
    numpy = sys.modules.get("numpy")
    if numpy:
        undo.append(functools.partial(numpy.random.set_state, numpy.random.get_state()))
    return undo
