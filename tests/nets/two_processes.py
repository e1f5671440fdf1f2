"""Two processes that meet over gloo."""

import tempfile
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

needs_gloo = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without distributed")


def in_two_processes(function: Callable, *arguments) -> None:
    """Call function(rank, *arguments) in each of two processes, which have met.

    They import everything, which takes so long that tests which do this are `slow`.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meet"
        torch.multiprocessing.spawn(_one, (meeting, function, arguments), nprocs=2)


def _one(rank: int, meeting: str, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    try:
        function(rank, *arguments)
    finally:
        dist.destroy_process_group()
