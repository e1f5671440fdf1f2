"""Any random network converts to the same function, or is refused with a reason."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import ENDS, SIZE, TIES, Spec, network, specs
from torch import Tensor, nn

from dmnn_convert import ConversionError, dynamize, force_gates, set_execution


def check(blocks: list[Spec], shared: bool, split: str) -> None:
    source = network(blocks, shared)
    images = torch.randn(3, *SIZE)
    with torch.no_grad():
        expected = source(images.clone())
    try:
        model, table = dynamize(source, 2, split=split, input_size=SIZE)
    except ConversionError as error:
        assert str(error)
        return
    gates = (torch.rand(3, sum(table.sizes)) > 0.5).float()
    with torch.no_grad():
        with force_gates(model, True):
            torch.testing.assert_close(model(images.clone()), expected, rtol=1e-4, atol=1e-4)
        with force_gates(model, gates):
            skipped = model(images.clone())
            set_execution(model, "masked")
            masked = model(images.clone())
        torch.testing.assert_close(skipped, masked, rtol=1e-4, atol=1e-4)
    with force_gates(model, True):
        ours = _gradient(model, images)
    torch.testing.assert_close(ours, _gradient(source, images), rtol=1e-3, atol=1e-3)


def _gradient(model: nn.Module, images: Tensor) -> Tensor:
    """Take a training step with norms in evaluation: sub-blocks normalise by themselves."""
    for module in model.modules():
        module.training = not isinstance(module, nn.BatchNorm2d)
    images = images.clone().requires_grad_()
    model(images * 1).square().mean().backward()
    assert images.grad is not None
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    return images.grad


splits = st.sampled_from(("exact", "nested"))
bounded = settings(
    max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@bounded
@given(st.lists(specs(ENDS), min_size=1, max_size=2), st.booleans(), splits)
def test_plain_networks(blocks: list[Spec], shared: bool, split: str) -> None:
    check(blocks, shared, split)


@pytest.mark.slow
@settings(bounded, max_examples=150)
@given(st.lists(specs(TIES), min_size=1, max_size=3), st.booleans(), splits)
def test_networks_with_aliases_and_writes(blocks: list[Spec], shared: bool, split: str) -> None:
    check(blocks, shared, split)


@pytest.mark.zoo  # an hour, with other networks each time
@settings(bounded, max_examples=5000, derandomize=False)
@given(st.lists(specs(TIES), min_size=1, max_size=4), st.booleans(), splits)
def test_many_networks_with_aliases_and_writes(
    blocks: list[Spec], shared: bool, split: str
) -> None:
    check(blocks, shared, split)
