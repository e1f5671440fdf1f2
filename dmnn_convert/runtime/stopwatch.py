"""The seconds that a call takes, the work that it leaves to the device included."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds from a device that is idle until it is idle again after a call."""
    _wait_for(device)
    begun = time.perf_counter()
    call()
    _wait_for(device)
    return time.perf_counter() - begun


def least_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Return the shortest of five calls after a warm-up, in seconds: disturbances only add."""
    call()
    return min(seconds_of(call, device) for _ in range(5))


def _wait_for(device: torch.device) -> None:
    """Wait until a device has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
