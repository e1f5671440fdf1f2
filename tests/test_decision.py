"""The controllers' folded arithmetic, in C and in NumPy, against PyTorch's in float64."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmnn_convert.runtime import decision


def decided(compute, f, x, pooled=None, before=None):
    """Return what `compute` does, in its own memory, as (margins, state, means (B, C))."""
    margins, state, means = compute(f, x, x.shape, pooled, before, decision._Scratch())
    batch, channels = x.shape[:2]
    return torch.tensor(margins), state, means.flatten()[: batch * channels].view(batch, channels)


def in_float64(f, means, before):
    """Return (margins, state) from means (B, C)."""
    w = SimpleNamespace(**{name: getattr(f, name).double() for name in ("w1", "b1", "w2")})
    state = torch.relu(means @ w.w1 + w.b1)
    if before is not None:
        state = state + torch.relu(before.double() @ w.w2)
    return state @ f.w3.double() + f.b3.double(), state


def drawn(channels, batch, size, seed, N=2, d=8):
    torch.manual_seed(seed)
    w1 = torch.randn(channels, d) / channels**0.5
    weights = (w1, torch.randn(d), torch.randn(d, d), torch.randn(d, N), torch.randn(N))
    x = torch.randn(batch, channels, *size).to(memory_format=torch.channels_last)
    return decision._Folded(torch.device("cpu"), *weights), x


ways = pytest.mark.parametrize("compute", [decision._natively, decision._in_numpy])


@pytest.fixture(autouse=True)
def _needs_a_compiler(request):
    native = request.node.callspec.params["compute"] is decision._natively
    if native and decision._controller is None:
        pytest.skip("there was no C compiler")


@ways
@given(
    channels=st.integers(1, 200),
    batch=st.integers(1, 5),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    seed=st.integers(0, 9),
    chained=st.booleans(),
)
def test_margins_are_exact_for_all_sizes(compute, channels, batch, size, seed, chained):
    f, x = drawn(channels, batch, size, seed)
    before = torch.randn(batch, f.d) if chained else None
    margins, state, means = decided(compute, f, x, before=before)
    expected = x.double().mean((2, 3))
    assert torch.allclose(means.double(), expected, atol=1e-6)
    wanted, hidden = in_float64(f, expected, before)
    assert torch.allclose(state.double(), hidden, atol=1e-5)
    assert torch.allclose(margins.double(), wanted, atol=1e-4)


@ways
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("channels", [16, 63, 64, 65, 130, 256])
def test_large_maps_are_averaged_exactly_by_several_threads(compute, channels, threads):
    f, x = drawn(channels, 2, (57, 61), 0)
    x += 1.0  # sums of many numbers of one sign lose most
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _, _, means = decided(compute, f, x)
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(means.double(), x.double().mean((2, 3)), rtol=1e-6)


@ways
def test_means_that_are_handed_on_are_not_taken_again(compute):
    f, x = drawn(24, 3, (5, 4), 0)
    known = torch.randn(3, 24)
    margins, _, means = decided(compute, f, x, pooled=known)
    assert torch.equal(means, known)
    assert torch.allclose(margins.double(), in_float64(f, known.double(), None)[0], atol=1e-4)
