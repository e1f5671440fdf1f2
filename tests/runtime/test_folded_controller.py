"""The controllers' folded arithmetic, in C and in NumPy, against PyTorch's in float64."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmnn_convert.runtime import folded_controller as folded
from dmnn_convert.runtime.folded_controller import Folded, Scratch


@pytest.fixture(params=["native", "numpy"], autouse=True)
def _way(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(folded, "_controller", None)
    elif folded._controller is None:
        pytest.skip("there was no C compiler, or PyTorch has no OpenMP that fits")


def drawn(channels, batch, size, seed=0, N=2, d=8):
    torch.manual_seed(seed)
    w1 = torch.randn(channels, d) / channels**0.5
    weights = (w1, torch.randn(d), torch.randn(d, d), torch.randn(d, N), torch.randn(N))
    x = torch.randn(batch, channels, *size).to(memory_format=torch.channels_last)
    return Folded(torch.device("cpu"), *weights), x


def decided(f, x, pooled=None, before=None):
    """Return (margins, state, means (B, C)), in memory of their own."""
    margins, state, means = f.decide(x, x.shape, pooled, before, Scratch())
    batch, channels = x.shape[:2]
    return torch.tensor(margins), state, means.flatten()[: batch * channels].view(batch, channels)


def in_float64(f, means, before):
    """Return (margins, state) from means (B, C)."""
    state = torch.relu(means @ f.w1.double() + f.b1.double())
    if before is not None:
        state = state + torch.relu(before.double() @ f.w2.double())
    return state @ f.w3.double() + f.b3.double(), state


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channels=st.integers(1, 200),
    batch=st.integers(1, 5),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    seed=st.integers(0, 9),
    chained=st.booleans(),
)
def test_margins_are_exact_for_all_sizes(channels, batch, size, seed, chained):
    f, x = drawn(channels, batch, size, seed)
    before = torch.randn(batch, f.d) if chained else None
    margins, state, means = decided(f, x, before=before)
    expected = x.double().mean((2, 3))
    assert torch.allclose(means.double(), expected, atol=1e-6)
    wanted, hidden = in_float64(f, expected, before)
    assert torch.allclose(state.double(), hidden, atol=1e-5)
    assert torch.allclose(margins.double(), wanted, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("channels", [16, 63, 64, 65, 130, 256])
def test_large_maps_are_averaged_exactly_by_however_many_threads(channels, threads):
    f, x = drawn(channels, 2, (57, 61))
    x += 1.0  # sums of many numbers of one sign lose most
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _, _, means = decided(f, x)
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(means.double(), x.double().mean((2, 3)), rtol=1e-6)


def test_maps_that_lie_otherwise_are_read_as_they_lie():
    f, x = drawn(24, 3, (5, 4))
    margins, _, _ = decided(f, x)
    assert torch.allclose(decided(f, x.contiguous())[0], margins, atol=1e-5)
    assert torch.allclose(decided(f, x.double())[0], margins, atol=1e-5)


def test_means_that_are_handed_on_are_not_taken_again():
    f, x = drawn(24, 3, (5, 4))
    known = torch.randn(3, 24)
    margins, _, means = decided(f, x, pooled=known)
    assert torch.equal(means, known)
    assert torch.allclose(margins.double(), in_float64(f, known.double(), None)[0], atol=1e-4)
