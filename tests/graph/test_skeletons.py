"""Copies of transformers' networks, which put hooks on when they first need them."""

import warnings

import pytest
import torch

from dmnn_convert import MultiPathBlock, dynamize, find_blocks, force_gates

with warnings.catch_warnings():  # transformers' own
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


def segformer():
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 2],
        decoder_hidden_size=16,
    )
    return transformers.SegformerForSemanticSegmentation(config).eval()


def test_a_network_that_has_put_its_hooks_on_converts_as_a_new_one_does():
    images = torch.randn(2, 3, 64, 64)
    new, used = segformer(), segformer()
    with torch.no_grad():
        expected = used(images).logits
        states = used(images, output_hidden_states=True).hidden_states
    assert any(module._forward_hooks for module in used.modules())
    found = [str(block) for block in find_blocks(used, (3, 64, 64))]
    assert found == [str(block) for block in find_blocks(new, (3, 64, 64))]

    model, _ = dynamize(used, 2, split="exact", input_size=(3, 64, 64))
    assert sum(isinstance(module, MultiPathBlock) for module in model.modules()) == 4
    with torch.no_grad(), force_gates(model, True):
        got = model(images, output_hidden_states=True)
    torch.testing.assert_close(got.logits, expected, rtol=0, atol=1e-6)
    assert len(got.hidden_states) == len(states) > 0
    for ours, theirs in zip(got.hidden_states, states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
