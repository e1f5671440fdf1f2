"""Settings and fixtures for every test."""

import gc

import pytest
import torch

# Inputs are small: more threads would only wait for each other on a machine that is shared.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    """Start from the same random state, whatever ran before."""
    torch.manual_seed(0)


def pytest_collection_finish(session):
    """Leave what is imported by now out of later garbage collections, which it makes slow."""
    gc.collect()
    gc.freeze()
