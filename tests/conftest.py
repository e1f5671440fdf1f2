"""Settings and fixtures for every test."""

import contextlib
import ctypes
import gc
import os

# ONNX Runtime would send what it measures over the network, from a thread of its own, in every
# process that imports it. It asks once, as it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import pytest
import torch

# Inputs are small: more threads would only wait for each other on a machine that is shared.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    """Start from the same random state, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _given_back():
    """Give back what a module's tests made; the C library would keep hundreds of megabytes."""
    yield
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # where it cannot
        ctypes.CDLL(None).malloc_trim(0)


def pytest_collection_finish(session):
    """Leave what is imported by now out of later garbage collections, which it makes slow."""
    gc.collect()
    gc.freeze()
