"""Settings and fixtures for every test."""

import pytest
import torch

# Inputs are small: more threads would only wait for each other on a machine that is shared.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    """Start from the same random state, whatever ran before."""
    torch.manual_seed(0)
