"""Random numbers that depend on a seed, an epoch and an image alone."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy
import torch


@contextlib.contextmanager
def drawn_from(*key: int) -> Iterator[None]:
    """Draw every random number inside from the key; put the generators back afterwards."""
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    seed = int(numpy.random.SeedSequence(key).generate_state(1)[0])
    # torch.manual_seed would also record, with a stack trace, what to do once CUDA starts. Called
    # for every image, that is slow and leaks.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    numpy.random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        numpy.random.set_state(states[2])
